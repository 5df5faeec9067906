"""Activation quantisers: an affine grid over a running range, and DoReFa's grid over [0, 1]."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlg_jax._checks import check_floating, check_instance
from mlg_jax._types import Array, Float
from mlg_jax.quant._spec import ActivationSpec
from mlg_jax.quant._ste import affine_ste, clip_round_ste, num_steps, true_divide

EMA_RATE = 0.01  # weight of a new batch in the running range
_EPSILON = 1.1920928955078125e-07  # smallest span of a range: machine epsilon of float32


class ActivationRange(NamedTuple):
    """The running range of an activation tensor."""

    minimum: Float[Array, ""]
    maximum: Float[Array, ""]
    is_set: Array  # boolean scalar, false before the first batch


def initial_range(dtype: Any = jnp.float32) -> ActivationRange:
    """An unset range, to be set by the first batch; `dtype` is that of the limits."""
    zero = jnp.zeros((), dtype)
    return ActivationRange(zero, zero, jnp.zeros((), bool))


def update_range(state: ActivationRange, x: Float[Array, "*shape"]) -> ActivationRange:
    """Moves both limits m towards those of the batch `x`: `m += 0.01 (batch - m)`.

    The first batch sets them. No gradient flows through the range.
    """
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

    The gradient of scheme `normal` is the identity everywhere; that of `dorefa` is the identity
    inside [0, 1] and zero outside.

    Args:
        x: floating-point array of any shape.
        spec: the quantiser.
        state: the running range, required by scheme `normal`; in training it is updated first.

    Returns:
        An array of `x`'s shape and dtype.

    Raises:
        TypeError: `x` is not a floating-point array, or `spec` is not an ActivationSpec.
        ValueError: `state` is None for scheme `normal`.

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
