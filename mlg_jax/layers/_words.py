"""Packs small numbers, such as signs, into 32-bit words."""

import jax.numpy as jnp
from jax import lax

from mlg_jax._types import Array


def join_words(numbers: Array, bits: int) -> Array:
    """Packs numbers of `bits` bits, `[..., c]`, into 32-bit words, the first one lowest.

    The reduction also makes the compiler materialise the words: it would fuse anything cheaper into
    every consumer.
    """
    per_word = 32 // bits
    padded = jnp.pad(
        numbers, ((0, 0),) * (numbers.ndim - 1) + ((0, -numbers.shape[-1] % per_word),)
    )
    parts = padded.reshape(*numbers.shape[:-1], -1, per_word).astype(jnp.uint32)
    shifts = bits * jnp.arange(per_word, dtype=jnp.uint32)
    return lax.reduce(parts << shifts, jnp.uint32(0), lax.bitwise_or, (parts.ndim - 1,))


def split_words(words: Array, bits: int, num_channels: int) -> Array:
    """The numbers that `join_words` packed, `[..., num_channels]`, uint8."""
    per_word = 32 // bits
    shifts = bits * jnp.arange(per_word, dtype=jnp.uint32)
    parts = (words[..., None] >> shifts) & jnp.uint32(2**bits - 1)
    return parts.reshape(*words.shape[:-1], -1)[..., :num_channels].astype(jnp.uint8)
