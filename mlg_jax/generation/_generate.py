"""Two-level weight generation: a kernel is a small basis, combined twice."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mlg_jax._checks import check_floating
from mlg_jax._platform import traced_platform
from mlg_jax._types import Array, Float

BASES_MULTIPLE = 16  # of the number of bases on tensor cores
MAX_TERMS = 8  # largest Bi for which `U B` is a sum of elementwise products


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
        W, `[Co, Ci, K]`, differentiable. Nothing is rounded: quantised factors are passed in.

    Raises:
        TypeError: a factor is not floating.
        ValueError: the factors' shapes do not fit together.

    Reference: Multi-level in-situ generation, ICCV 2021, https://arxiv.org/abs/2108.11430.
    """
    check_factors(basis, coeff_in, coeff_out)
    return jnp.swapaxes(taps_first(basis, coeff_in, coeff_out), 1, 2)


def taps_first(basis: Array, coeff_in: Array | None, coeff_out: Array | None) -> Array:
    """`generate_kernel` as `[Co, K, Ci]`, the order in which convolutions on GPUs read kernels."""
    rows = combine_within(basis, coeff_in)
    return rows if coeff_out is None else jnp.einsum("ob,bkc->okc", coeff_out, rows)


def combine_within(basis: Array, coeff_in: Array | None) -> Float[Array, "b k c"]:
    """Level 1, `U B`; without U, the basis itself.

    With few bases it is a sum of elementwise products, which compilers fuse: as a batch of tiny
    matrix products it would be a library call for each layer.
    """
    if coeff_in is None:
        return jnp.swapaxes(basis, 1, 2)
    if basis.shape[1] > MAX_TERMS:
        return jnp.einsum("bci,bik->bkc", coeff_in, basis)
    terms = (basis[:, i, :, None] * coeff_in[:, None, :, i] for i in range(basis.shape[1]))
    return functools.reduce(jnp.add, terms)


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


def pad_bases(factors: Mapping[str, Any], dtype: Any) -> Mapping[str, Any]:
    """Adds bases of zeros, on GPUs and for 16-bit types, up to a multiple of `BASES_MULTIPLE`.

    Otherwise XLA pads the operands of matrix products, activations among them, in every call.

    Args:
        factors: `basis` [Bo, Bi, K], `coeff_in` [Bo, Ci, Bi] and `coeff_out` [Co, Bo], as far as
            they exist; without `coeff_out`, the bases are the output channels and stay as they are.
        dtype: of the computation.
    """
    extra = -factors["basis"].shape[0] % BASES_MULTIPLE
    is_narrow = traced_platform() != "cpu" and jnp.dtype(dtype).itemsize == 2
    if "coeff_out" not in factors or not is_narrow or not extra:
        return factors
    widths = {"coeff_out": ((0, 0), (0, extra))}
    own = ((0, extra), (0, 0), (0, 0))
    return {name: jnp.pad(factor, widths.get(name, own)) for name, factor in factors.items()}
