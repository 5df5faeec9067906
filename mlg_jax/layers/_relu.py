"""Rectifiers that save one bit per entry, for networks whose weights are not differentiated."""

import functools

import jax
import jax.numpy as jnp

from mlg_jax._ordering import wait_for
from mlg_jax._types import Array, Float
from mlg_jax.layers._words import join_words, split_words


def relu_by_sign(x: Float[Array, "*shape c"]) -> Float[Array, "*shape c"]:
    """`max(x, 0)`, saving signs as bits; see `_clip`."""
    return _clip(x, float("inf"))


def relu6_by_sign(x: Float[Array, "*shape c"]) -> Float[Array, "*shape c"]:
    """`min(max(x, 0), 6)`, saving as bits where it is linear; see `_clip`."""
    return _clip(x, 6.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _clip(x: Array, maximum: float) -> Array:
    """`x` between 0 and `maximum`.

    Forward: `min(max(x, 0), maximum)`. Backward: the cotangent where `0 < x < maximum`, otherwise
    zero. Residuals: one bit per entry, channels padded to a multiple of 32. Autodiff would save a
    byte per entry, and compilers save x instead, to compare again. If a convolution's kernel is
    differentiated, the rectified x is saved in any case, and the bits would come on top.
    """
    return jnp.clip(x, 0, maximum)


def _clip_fwd(x: Array, maximum: float) -> tuple[Array, Array]:
    words = join_words((x > 0) & (x < maximum), 1)
    # Otherwise XLA computes the bits in the backward pass and keeps x until then.
    return _clip(wait_for(x, words), maximum), words


def _clip_bwd(maximum: float, words: Array, cotangent: Array) -> tuple[Array]:
    is_linear = split_words(wait_for(words, cotangent), 1, cotangent.shape[-1])
    return (jnp.where(is_linear != 0, cotangent, jnp.zeros((), cotangent.dtype)),)


_clip.defvjp(_clip_fwd, _clip_bwd)
