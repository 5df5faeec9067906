"""Projection of a trained kernel onto its factors by truncated singular value decompositions."""

import dataclasses
import functools
from collections.abc import Mapping, Set
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlg_jax._checks import check_choice, check_integer, check_real
from mlg_jax._types import Array, Float
from mlg_jax.generation._shapes import FactorShapes
from mlg_jax.quant import REPRESENTABLE, wide

METHODS = ("svd", "l2", "svd_l2")
SCHEDULES = ("cosine", "constant")
METRICS = ("data", "weights")
_NUM_STEPS = {"data": 500, "weights": 3000}

# Axes of one base within each factor, and the shape that broadcasts one number per base.
BASE_AXES = {"basis": (1, 2), "coeff_in": (1, 2), "coeff_out": (0,)}
BASE_SHAPE = {"basis": (-1, 1, 1), "coeff_in": (-1, 1, 1), "coeff_out": (1, -1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectionSpec:
    """How a teacher's kernels are projected.

    Args:
        method: `svd` (closed form), `l2` (minimise a mean squared error from the model's initial
            values), `svd_l2` (the same, from the closed form).
        num_steps: steps of `l2`, for each layer with metric `data`; None is 500 for `data` and
            3,000 for `weights`.
        learning_rate: initial learning rate of these steps.
        schedule: `cosine` to zero over the steps, or `constant` as published. At a constant rate,
            rounding keeps the factors moving: for random kernels and 2-44-3-6-3, the cosine ends
            4 % lower after 1,000 steps.
        metric: the error of `l2`. `data`: of every layer's output on real images, matched layer
            after layer to the teacher's, from the inputs that the layers matched before produce.
            `weights`: of the kernels, as published. Without images, `data` becomes `weights`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    method: str = "svd_l2"
    num_steps: int | None = None
    learning_rate: float = 2e-2
    schedule: str = "cosine"
    metric: str = "weights"

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        if self.num_steps is not None:
            check_integer("num_steps", self.num_steps, 1)
        check_real("learning_rate", self.learning_rate, 0.0, exclusive_minimum=True)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("metric", self.metric, METRICS)

    def resolved(self, *, has_images: bool) -> "ProjectionSpec":
        """The spec with a number of steps, and with the metric that applies."""
        metric = self.metric if has_images else "weights"
        num_steps = self.num_steps or _NUM_STEPS[metric]
        return dataclasses.replace(self, metric=metric, num_steps=num_steps)


class ProjectedFactors(NamedTuple):
    """The arguments of `generate_kernel`; None for a level that does not exist."""

    basis: Float[Array, "b i k"]
    coeff_in: Float[Array, "b c i"] | None
    coeff_out: Float[Array, "o b"] | None


def decompose(kernel: Float[Array, "o c k"], shapes: FactorShapes) -> ProjectedFactors:
    """Factors of these shapes whose product approximates `kernel`.

    Level 2: truncated SVD of the matrix `[Co, Ci K]`, whose left singular vectors are V.
    Level 1: truncated SVD of each of the Bo remaining matrices `[Ci, K]` to rank Bi, whose singular
    values go to U.
    """
    factors = _decompose(wide(kernel), shapes)  # there is no SVD in 16 bits
    return jax.tree.map(lambda f: f.astype(kernel.dtype), factors)


def _decompose(kernel: Float[Array, "o c k"], shapes: FactorShapes) -> ProjectedFactors:
    """The truncated decompositions of the levels that exist."""
    coeff_out, rows = _split_rows(kernel, shapes.basis[0] if shapes.coeff_out else None)
    if shapes.coeff_in is None:
        return ProjectedFactors(rows, None, coeff_out)
    left, values, right = jnp.linalg.svd(rows, full_matrices=False)
    rank = shapes.basis[1]
    coeff_in = left[..., :rank] * values[..., None, :rank]
    return ProjectedFactors(right[..., :rank, :], coeff_in, coeff_out)


def _split_rows(kernel: Float[Array, "o c k"], num_bases: int | None) -> tuple[Array | None, Array]:
    """Level 2: V `[Co, Bo]` with orthonormal columns, and the Bo matrices `[Ci, K]` it combines."""
    if num_bases is None:
        return None, kernel
    matrix = kernel.reshape(kernel.shape[0], -1)
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    rows = values[:num_bases, None] * right[:num_bases]
    return left[:, :num_bases], rows.reshape(num_bases, *kernel.shape[1:])


def balance_peaks(factors: Mapping[str, Array], bounded: Set[str]) -> dict[str, Array]:
    """Rescales the factors of every base to equal largest entries, without changing the product.

    A factor has a single quantisation grid, whose levels bases of unlike scale would waste. Factors
    in `bounded` only hold values below 1: the excess goes to the others. If all are bounded, it is
    lost, and the product is scaled down.
    """
    peaks = {n: jnp.max(jnp.abs(v), BASE_AXES[n]) + 1e-12 for n, v in factors.items()}  # each [Bo]
    product = functools.reduce(jnp.multiply, peaks.values())
    level = product ** (1.0 / len(peaks))
    capped = jnp.minimum(level, REPRESENTABLE)
    num_free = len(factors) - len(bounded)
    free = level * (level / capped) ** (len(bounded) / max(num_free, 1))

    def rescale(name: str, value: Array) -> Array:
        wanted = capped if name in bounded else free
        return value * (wanted / peaks[name]).reshape(BASE_SHAPE[name])

    return {name: rescale(name, value) for name, value in factors.items()}
