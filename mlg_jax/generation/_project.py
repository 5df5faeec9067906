"""Projection of a trained kernel onto its factors by truncated singular value decompositions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlg_jax._checks import check_floating, check_instance
from mlg_jax._types import Array, Float, KernelShape
from mlg_jax.generation._spec import FactorShapes, GenerationSpec
from mlg_jax.quant import wide


class Factors(NamedTuple):
    """The arguments of `generate_kernel`; a coefficient is None if its level does not exist."""

    basis: Float[Array, "b i k"]
    coeff_in: Float[Array, "b c i"] | None
    coeff_out: Float[Array, "o b"] | None


def project_kernel(kernel: Float[Array, "o c k"], spec: GenerationSpec) -> Factors:
    """Factors whose unquantised product approximates `kernel`.

    Level 2 truncates the singular value decomposition of the matrix `[Co, Ci K]`; V has its left
    singular vectors. Level 1 truncates each of the Bo remaining matrices `[Ci, K]` to rank Bi; U
    has the left singular vectors times the singular values.

    Args:
        kernel: `[Co, Ci, K]`, floating-point.
        spec: the requested numbers of bases; its bits are not used.

    Returns:
        `(basis, coeff_in, coeff_out)`, or `(kernel, None, None)` if neither level applies.

    Raises:
        TypeError: `kernel` is not a floating-point array, or `spec` is not a GenerationSpec.
        ValueError: `kernel` does not have three axes or is empty.

    Reference: https://arxiv.org/abs/2108.11430 ("SVD init").
    """
    check_floating("kernel", kernel)
    check_instance("spec", spec, GenerationSpec)
    if jnp.ndim(kernel) != 3 or jnp.size(kernel) == 0:
        raise ValueError(
            f"`kernel` must have a shape [Co, Ci, K] without zeros; got {jnp.shape(kernel)}."
        )
    out_channels, in_channels, taps = jnp.shape(kernel)
    shapes = spec.resolve(KernelShape(out_channels, in_channels, (taps, 1)))
    if shapes is None:
        return Factors(kernel, None, None)
    factors = _decompose(wide(kernel), shapes)  # JAX has no SVD in 16 bits
    return jax.tree.map(lambda f: f.astype(kernel.dtype), factors)


def _decompose(kernel: Float[Array, "o c k"], shapes: FactorShapes) -> Factors:
    """The truncated decompositions of the levels that exist."""
    coeff_out, rows = _split_rows(kernel, shapes.basis[0] if shapes.coeff_out else None)
    if shapes.coeff_in is None:
        return Factors(rows, None, coeff_out)
    left, values, right = jnp.linalg.svd(rows, full_matrices=False)
    rank = shapes.basis[1]
    coeff_in = left[..., :rank] * values[..., None, :rank]
    return Factors(right[..., :rank, :], coeff_in, coeff_out)


def _split_rows(kernel: Float[Array, "o c k"], num_bases: int | None) -> tuple[Array | None, Array]:
    """Level 2: V `[Co, Bo]` with orthonormal columns, and the Bo matrices `[Ci, K]` it combines."""
    if num_bases is None:
        return None, kernel
    matrix = kernel.reshape(kernel.shape[0], -1)
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    rows = values[:num_bases, None] * right[:num_bases]
    return left[:, :num_bases], rows.reshape(num_bases, *kernel.shape[1:])
