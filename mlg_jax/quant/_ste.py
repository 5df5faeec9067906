"""Rounding primitives and their straight-through estimators."""

import functools

import jax
import jax.numpy as jnp

from mlg_jax._types import Array, Float

EWGS_DELTA = 1e-3  # scaling factor of element-wise gradient scaling (EWGS)


def num_steps(bits: int) -> int:
    """The number of steps of a grid, `n = 2**bits - 1`."""
    return 2**bits - 1


def true_divide(x: Float[Array, "*shape"], divisor: Array | float | int) -> Float[Array, "*shape"]:
    """`x / divisor` for a positive scalar `divisor`, correctly rounded in every compiled program.

    XLA replaces division by a scalar with multiplication by its reciprocal and merges that factor
    into neighbouring operations, so that results would depend on the surrounding program. We hide
    the scalar from it: the elementwise divisor `max(divisor, -|x|)` always equals `divisor`.
    """
    # Without stop_gradient, autodiff forms x / divisor^2, and the square can underflow.
    same = jnp.maximum(jnp.asarray(divisor, x.dtype), jax.lax.stop_gradient(-jnp.abs(x)))
    return x / same


def pinned(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x`, rounded to its dtype here: compilers do not reassociate or contract across a maximum."""
    return jnp.maximum(x, -jnp.finfo(x.dtype).max)


def to_grid(levels: Float[Array, "*shape"], bits: int) -> Float[Array, "*shape"]:
    """Maps integer levels 0..n to the grid `{0, 1/n, ..., 1}`.

    Up to 16 bits, `n * (1/n)` is exactly 1 in float32.
    """
    return pinned(levels * jnp.asarray(1.0 / num_steps(bits), levels.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def round_ste(x: Float[Array, "*shape"], bits: int) -> Float[Array, "*shape"]:
    """Rounds `x` in [0, 1] to the grid `{0, 1/n, ..., 1}`, `n = 2**bits - 1`; halves to even.

    Forward: `round(n x) / n`. Backward: the cotangent clamped to [-1, 1]. Residuals: none.
    """
    return to_grid(jnp.round(x * num_steps(bits)), bits)


def _round_ste_fwd(x, bits):
    return round_ste(x, bits), None


def _round_ste_bwd(bits, _, ct):
    return (jnp.clip(ct, -1.0, 1.0),)


round_ste.defvjp(_round_ste_fwd, _round_ste_bwd)


@jax.custom_vjp
def sign_ste(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The sign grid of one bit.

    Forward: `sign(x)`; 0 maps to 0. Backward: the cotangent clamped to [-1, 1]. Residuals: none.
    """
    return jnp.sign(x)


def _sign_ste_fwd(x):
    return sign_ste(x), None


def _sign_ste_bwd(_, ct):
    return (jnp.clip(ct, -1.0, 1.0),)


sign_ste.defvjp(_sign_ste_fwd, _sign_ste_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def round_ewgs(x: Float[Array, "*shape"], bits: int) -> Float[Array, "*shape"]:
    """Rounds `x` in [0, 1] to `2**bits` levels with element-wise gradient scaling.

    Forward: `y = round(n x) / n`, `n = 2**bits - 1`.
    Backward: `ct (1 + delta sign(ct) (x - y))`, delta = 1e-3.
    Residuals: `x - y`, one float per element.

    Reference: Lee, Kim and Ham, CVPR 2021, https://arxiv.org/abs/2104.00903.
    """
    return to_grid(jnp.round(x * num_steps(bits)), bits)


def _round_ewgs_fwd(x, bits):
    y = round_ewgs(x, bits)
    return y, x - y


def _round_ewgs_bwd(bits, error, ct):
    return (ct * (1.0 + EWGS_DELTA * jnp.sign(ct) * error),)


round_ewgs.defvjp(_round_ewgs_fwd, _round_ewgs_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def clip_round_ste(x: Float[Array, "*shape"], bits: int) -> Float[Array, "*shape"]:
    """DoReFa's activation grid.

    Forward: `round(n clip(x, 0, 1)) / n`. Backward: the cotangent inside [0, 1], zero outside.
    Residuals: one boolean per element.
    """
    return to_grid(jnp.round(jnp.clip(x, 0.0, 1.0) * num_steps(bits)), bits)


def _clip_round_ste_fwd(x, bits):
    return clip_round_ste(x, bits), (x >= 0.0) & (x <= 1.0)


def _clip_round_ste_bwd(bits, is_inside, ct):
    return (jnp.where(is_inside, ct, 0.0),)


clip_round_ste.defvjp(_clip_round_ste_fwd, _clip_round_ste_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def affine_ste(
    x: Float[Array, "*shape"], scale: Float[Array, ""], zero_point: Float[Array, ""], bits: int
) -> Float[Array, "*shape"]:
    """The affine activation grid.

    Forward: `(clip(round(x / scale + zero_point), 0, n) - zero_point) * scale`.
    Backward: the identity in `x`, also outside the range; scale and zero point are constants.
    Residuals: the two scalars.
    """
    level = jnp.clip(jnp.round(true_divide(x, scale) + zero_point), 0, num_steps(bits))
    return (level - zero_point) * scale


def _affine_ste_fwd(x, scale, zero_point, bits):
    return affine_ste(x, scale, zero_point, bits), (scale, zero_point)


def _affine_ste_bwd(bits, residuals, ct):
    scale, zero_point = residuals
    return ct, jnp.zeros_like(scale), jnp.zeros_like(zero_point)


affine_ste.defvjp(_affine_ste_fwd, _affine_ste_bwd)
