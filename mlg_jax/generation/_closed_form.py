"""A kernel's factors in closed form, on the host: one decomposition serves every truncation."""

import functools
from typing import NamedTuple

import numpy as np

from mlg_jax.generation._project import BASE_AXES, BASE_SHAPE
from mlg_jax.generation._shapes import FactorShapes

Factors = dict[str, np.ndarray]


class Decomposition(NamedTuple):
    """Singular value decompositions of a kernel, without truncation."""

    across: np.ndarray  # [Co, R], of the matrix [Co, Ci K]
    rows: np.ndarray  # [R, Ci, K], the right singular vectors times the singular values
    within: tuple[np.ndarray, np.ndarray]  # [R, Ci, r] and [R, r, K], of each of `rows`
    within_kernel: tuple[np.ndarray, np.ndarray]  # [Co, Ci, r] and [Co, r, K], of each kernel


def decompose_fully(kernel: np.ndarray) -> Decomposition:
    """Decomposes `[Co, Ci, K]` across kernels and within them."""
    left, values, right = np.linalg.svd(kernel.reshape(len(kernel), -1), full_matrices=False)
    rows = (values[:, None] * right).reshape(-1, *kernel.shape[1:])
    return Decomposition(left, rows, _split(rows), _split(kernel))


def _split(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left, values, right = np.linalg.svd(matrices, full_matrices=False)
    return left * values[:, None, :], right


def balanced(whole: Decomposition, shapes: FactorShapes) -> Factors:
    """The truncated decomposition, rescaled to equal deviations of all factors of a base."""
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


def closed_form(kernel: np.ndarray, shapes: FactorShapes) -> Factors:
    """The balanced, truncated decomposition of `[Co, Ci, K]`."""
    return balanced(decompose_fully(kernel), shapes)


def rows_of(basis: np.ndarray, coeff_in: np.ndarray | None) -> np.ndarray:
    """Level 1, `U B`; without U, the basis itself."""
    return basis if coeff_in is None else coeff_in @ basis


def _balance(factors: Factors) -> Factors:
    """Rescales the factors of every base to equal deviations, without changing their product.

    A factor has a single quantisation grid, whose levels bases of unlike scale would waste.
    """
    # Each of shape [Bo].
    scales = {n: np.sqrt(np.mean(v**2, BASE_AXES[n])) + 1e-12 for n, v in factors.items()}
    level = functools.reduce(np.multiply, scales.values()) ** (1.0 / len(factors))

    def rescale(name: str, value: np.ndarray) -> np.ndarray:
        return value * (level / scales[name]).reshape(BASE_SHAPE[name])

    return {name: rescale(name, value) for name, value in factors.items()}
