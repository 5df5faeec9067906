"""A penalty that keeps bases and coefficients orthogonal."""

import jax
import jax.numpy as jnp

from mlg_jax._types import Array, Float
from mlg_jax.generation._generate import check_factors
from mlg_jax.quant import wide

_EPSILON = 1e-8  # added to a column's norm, as published


def orthogonality_penalty(
    basis: Float[Array, "b i k"],
    coeff_in: Float[Array, "b c i"] | None,
    coeff_out: Float[Array, "o b"] | None,
) -> Float[Array, ""]:
    """Mean squared distance of the factors' Gram matrices from the identity, summed over factors.

    The Gram matrices are those of the rows of each `B[b]` (not normalised), of the columns of each
    `U[b]` and of the columns of `V` (both normalised; the norm is a constant to autodiff). With
    Bi = 1, nothing within a kernel can be orthogonal, so only the term of V remains. Without
    level 1, the rows of B as a matrix `[Bo, Ci K]` are penalised.

    Args:
        basis: B, `[Bo, Bi, K]`, unquantised; without `coeff_in`, `[Bo, Ci, K]`.
        coeff_in: U, `[Bo, Ci, Bi]`, unquantised, or None.
        coeff_out: V, `[Co, Bo]`, unquantised, or None.

    Returns:
        A scalar, not weighted.

    Raises:
        TypeError, ValueError: as in `generate_kernel`.

    Reference: https://arxiv.org/abs/2108.11430, section 3.
    """
    check_factors(basis, coeff_in, coeff_out)
    dtype = basis.dtype
    basis, coeff_in, coeff_out = jax.tree.map(wide, (basis, coeff_in, coeff_out))
    penalty = jnp.zeros((), basis.dtype)
    if coeff_in is None:
        penalty += _distance(_gram(basis.reshape(basis.shape[0], -1)))
    elif basis.shape[1] > 1:
        penalty += _distance(_gram(basis)) + _distance(_gram(_unit_columns(coeff_in).mT))
    if coeff_out is not None:
        penalty += _distance(_gram(_unit_columns(coeff_out).mT))
    return penalty.astype(dtype)


def _gram(rows: Float[Array, "*b r n"]) -> Float[Array, "*b r r"]:
    return rows @ rows.mT


def _distance(gram: Float[Array, "*b r r"]) -> Float[Array, ""]:
    return jnp.mean(jnp.square(gram - jnp.eye(gram.shape[-1], dtype=gram.dtype)))


def _unit_columns(matrix: Float[Array, "*b r c"]) -> Float[Array, "*b r c"]:
    norm = jnp.linalg.norm(jax.lax.stop_gradient(matrix), axis=-2, keepdims=True)
    return matrix / (norm + _EPSILON)
