"""Two-level weight generation: a kernel is a small basis, combined twice."""

import jax.numpy as jnp

from mlg_jax._checks import check_floating
from mlg_jax._types import Array, Float


def generate_kernel(
    basis: Float[Array, "b i k"],
    coeff_in: Float[Array, "b c i"] | None,
    coeff_out: Float[Array, "o b"] | None,
) -> Float[Array, "o c k"]:
    """Two-level generation, `W = V (U B)`.

    Args:
        basis: B, `[Bo, Bi, K]`; without `coeff_in` `[Bo, Ci, K]`.
        coeff_in: U, `[Bo, Ci, Bi]`, combines within one kernel; None is the identity.
        coeff_out: V, `[Co, Bo]`, combines across kernels; None is the identity.

    Returns:
        W, `[Co, Ci, K]`. Differentiable; the factors arrive quantised, the product is not rounded.

    Raises:
        TypeError: a factor is not floating.
        ValueError: shapes that do not fit together.

    Reference: Multi-level in-situ generation, ICCV 2021, https://arxiv.org/abs/2108.11430.
    """
    check_factors(basis, coeff_in, coeff_out)
    rows = basis if coeff_in is None else jnp.einsum("bci,bik->bck", coeff_in, basis)
    return rows if coeff_out is None else jnp.einsum("ob,bck->ock", coeff_out, rows)


def check_factors(basis: Array, coeff_in: Array | None, coeff_out: Array | None) -> None:
    """Raises unless the factors are floating and their shapes fit together."""
    check_floating("basis", basis)
    if jnp.ndim(basis) != 3:
        raise ValueError(f"`basis` must have shape [Bo, Bi, K]; got {jnp.shape(basis)}.")
    num_bases, base_in, _ = jnp.shape(basis)
    if coeff_in is not None:
        check_floating("coeff_in", coeff_in)
        shape = jnp.shape(coeff_in)
        if len(shape) != 3 or (shape[0], shape[2]) != (num_bases, base_in):
            raise ValueError(
                f"`coeff_in` must have shape [Bo, Ci, Bi] = [{num_bases}, Ci, {base_in}] to fit "
                f"`basis` {jnp.shape(basis)}; got {shape}."
            )
    if coeff_out is not None:
        check_floating("coeff_out", coeff_out)
        shape = jnp.shape(coeff_out)
        if len(shape) != 2 or shape[1] != num_bases:
            raise ValueError(
                f"`coeff_out` must have shape [Co, Bo] = [Co, {num_bases}] to fit `basis` "
                f"{jnp.shape(basis)}; got {shape}."
            )
