"""Activation quantisers: an affine grid over a running range, and DoReFa's clipped one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlg_jax._checks import check_floating, check_instance
from mlg_jax._types import Array, Float
from mlg_jax.quant._spec import ActivationSpec
from mlg_jax.quant._ste import affine_ste, clip_round_ste, num_steps, true_divide

EMA_RATE = 0.01  # weight of a new batch in the running range
_EPSILON = 1.1920928955078125e-07  # float32's, the smallest span of a range


class ActivationRange(NamedTuple):
    """The running range of an activation tensor; `is_set` is false before the first batch."""

    minimum: Float[Array, ""]
    maximum: Float[Array, ""]
    is_set: Array  # boolean scalar


def initial_range(dtype=jnp.float32) -> ActivationRange:
    """A range that the first batch will set."""
    zero = jnp.zeros((), dtype)
    return ActivationRange(zero, zero, jnp.zeros((), bool))


def update_range(state: ActivationRange, x: Float[Array, "*shape"]) -> ActivationRange:
    """Moves the range towards the batch's: `m += 0.01 (batch - m)`; the first batch sets it."""
    x = jax.lax.stop_gradient(x).astype(state.minimum.dtype)

    def move(old: Array, new: Array) -> Array:
        return jnp.where(state.is_set, old + EMA_RATE * (new - old), new)

    return ActivationRange(
        move(state.minimum, jnp.min(x)), move(state.maximum, jnp.max(x)), jnp.ones((), bool)
    )


def quantize_activation(
    x: Float[Array, "*shape"], spec: ActivationSpec, state: ActivationRange | None = None
) -> Float[Array, "*shape"]:
    """Quantises an activation tensor.

    Args:
        x: floating, any shape.
        spec: the quantiser.
        state: the range, for scheme `normal`; update it before the call in training.

    Returns:
        An array of `x`'s shape and dtype. The gradient of `normal` is the identity everywhere, that
        of `dorefa` the identity inside [0, 1] and zero outside.

    Raises:
        TypeError: `x` is not floating.
        ValueError: scheme `normal` without a range.

    Reference: https://arxiv.org/abs/1712.05877 (affine grid), https://arxiv.org/abs/1606.06160.
    """
    check_floating("x", x)
    check_instance("spec", spec, ActivationSpec)
    if spec.bits is None:
        return x
    if spec.scheme == "dorefa":
        return clip_round_ste(x, spec.bits)
    if state is None:
        raise ValueError("`state` must be an ActivationRange for scheme 'normal'; got None.")
    low = jnp.minimum(state.minimum, 0.0)
    span = jnp.maximum(jnp.maximum(state.maximum, 0.0) - low, _EPSILON)
    scale = true_divide(span, num_steps(spec.bits))
    zero_point = jnp.clip(jnp.round(true_divide(-low, scale)), 0, num_steps(spec.bits))
    return affine_ste(x.astype(scale.dtype), scale, zero_point, spec.bits).astype(x.dtype)
