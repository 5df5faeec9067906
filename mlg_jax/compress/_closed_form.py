"""A kernel's factors in closed form: singular vectors, and grids that end where they fit best."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mlg_jax._types import Array, KernelShape
from mlg_jax.generation import FactorShapes, GenerationSpec
from mlg_jax.quant import QuantSpec, unquantize

# Shares of a factor's largest entry at which its grid may end. At 2 bits the best grid of a normal
# tensor ends near 1.5 deviations; one that ends at the largest entry has an error larger than 1.
_CLIPS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)
_REPRESENTABLE = 0.95  # the tanh schemes hold |value| < 1
NAMES = FactorShapes._fields

Factors = dict[str, np.ndarray]


class Decomposition(NamedTuple):
    """Singular vectors of a kernel, none left out; one decomposition serves every choice."""

    across: np.ndarray  # [Co, R], of the matrix [Co, Ci K]
    rows: np.ndarray  # [R, Ci, K], what `across` combines, singular values included
    within: tuple[np.ndarray, np.ndarray]  # [R, Ci, r] and [R, r, K], of `rows`
    within_kernel: tuple[np.ndarray, np.ndarray]  # [Co, Ci, r] and [Co, r, K], of the kernel


def decompose(kernel: np.ndarray) -> Decomposition:
    """All singular vectors of `[Co, Ci, K]`, across kernels and within them."""
    left, values, right = np.linalg.svd(kernel.reshape(len(kernel), -1), full_matrices=False)
    rows = (values[:, None] * right).reshape(-1, *kernel.shape[1:])
    return Decomposition(left, rows, _split(rows), _split(kernel))


def _split(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left, values, right = np.linalg.svd(matrices, full_matrices=False)
    return left * values[:, None, :], right


def balanced(whole: Decomposition, shapes: FactorShapes) -> Factors:
    """The truncated decomposition, every base with the same deviation in all its factors."""
    num_bases, rank, _ = shapes.basis
    has_level_2 = shapes.coeff_out is not None
    factors: Factors = {}
    if shapes.coeff_in is None:
        factors["basis"] = whole.rows[:num_bases]
    else:
        coeff_in, basis = whole.within if has_level_2 else whole.within_kernel
        factors["basis"] = basis[:num_bases, :rank]
        factors["coeff_in"] = coeff_in[:num_bases, :, :rank]
    if has_level_2:
        factors["coeff_out"] = whole.across[:, :num_bases]
    return _balance(factors)


def start_factors(kernel: np.ndarray, spec: GenerationSpec, shape: KernelShape) -> dict[str, Array]:
    """Parameters that `spec` turns into nearly the kernel, in closed form.

    Where the quantiser is `dorefa_sym` of 2 bits or more, each factor's grid ends where its
    squared rounding error is least; the generated kernel then is that of `rounded_kernel`.
    """
    shapes = spec.resolve(shape)
    assert shapes is not None, "the layer is generated"
    values = balanced(decompose(kernel), shapes)
    return {name: _parameters(value, getattr(spec, name)) for name, value in values.items()}


def rounded_kernel(kernel: np.ndarray, spec: GenerationSpec, shape: KernelShape) -> np.ndarray:
    """The generated kernel `[Co, Ci, K]` of the closed-form projection."""
    shapes = spec.resolve(shape)
    assert shapes is not None, "the layer is generated"
    values = balanced(decompose(kernel), shapes)
    factors = {name: rounded(v, getattr(spec, name).bits) for name, v in values.items()}
    rows = rows_of(factors["basis"], factors.get("coeff_in")).reshape(len(factors["basis"]), -1)
    product = factors["coeff_out"] @ rows if "coeff_out" in factors else rows
    return product.reshape(kernel.shape)


def rows_of(basis: np.ndarray, coeff_in: np.ndarray | None) -> np.ndarray:
    """Level 1, `U B`; without U the basis itself."""
    return basis if coeff_in is None else coeff_in @ basis


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """The nearest points of `dorefa_sym`'s grid whose end has the least squared error."""
    return _on_grid(values, _grid_end(values, bits), bits)


def _parameters(values: np.ndarray, quant: QuantSpec) -> Array:
    if quant.bits is not None and quant.bits > 1 and quant.scheme == "dorefa_sym":
        end = _grid_end(values, quant.bits)
        values = np.clip(values, -end, end)
    return unquantize(jnp.asarray(values), quant)


def _balance(factors: Factors) -> Factors:
    """The same product; one grid a factor is wasted on bases of unlike scale."""
    axes = {"basis": (1, 2), "coeff_in": (1, 2), "coeff_out": (0,)}
    scales = {n: np.sqrt(np.mean(v**2, axes[n])) + 1e-12 for n, v in factors.items()}  # each [Bo]
    level = functools.reduce(np.multiply, scales.values()) ** (1.0 / len(factors))

    def rescale(name: str, value: np.ndarray) -> np.ndarray:
        shape = (1, -1) if name == "coeff_out" else (-1, 1, 1)
        return value * (level / scales[name]).reshape(shape)

    return {name: rescale(name, value) for name, value in factors.items()}


def _grid_end(values: np.ndarray, bits: int) -> float:
    """Where the grid ends: clipped there, the values have the least squared rounding error."""
    peak = float(np.max(np.abs(values)))
    ends = [min(clip * peak, _REPRESENTABLE) for clip in _CLIPS]
    errors = [float(np.sum((_on_grid(values, end, bits) - values) ** 2)) for end in ends]
    return ends[int(np.argmin(errors))]


def _on_grid(values: np.ndarray, end: float, bits: int) -> np.ndarray:
    """`dorefa_sym` on values instead of parameters: no tanh, the grid ends at +-`end`."""
    steps = 2**bits - 1
    scale = 2.0 * end if end else 1.0
    unit = np.clip(values, -end, end) / scale + 0.5
    return end * (2.0 * (np.round(unit * steps) / steps) - 1.0)
