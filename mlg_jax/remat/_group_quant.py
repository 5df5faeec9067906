"""Group quantisation: arrays as 2, 4 or 8 bit integers, with unbiased stochastic rounding."""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from mlg_jax._types import Array, Key

GROUP_BITS = (2, 4, 8)


class GroupCodes(struct.PyTreeNode):
    """The entries of an array in groups: `x` is approximately `minimum + step * code`."""

    words: Array  # uint32 [groups, group_size * bits / 32]
    minimum: Array  # float32 [groups]
    step: Array  # float32 [groups]
    shape: tuple[int, ...] = struct.field(pytree_node=False)
    dtype: jnp.dtype = struct.field(pytree_node=False)
    bits: int = struct.field(pytree_node=False)


def quantize(x: Array, bits: int, group_size: int, key: Key) -> GroupCodes:
    """Quantises groups of `group_size` entries in memory order; the last group is edge-padded.

    A code is `floor((x - minimum) / step + u)` with u uniform in [0, 1), so that its expectation
    is `(x - minimum) / step`.
    """
    rows = _rows(x.astype(jnp.float32), group_size)
    minimum = jnp.min(rows, axis=1, keepdims=True)
    step = (jnp.max(rows, axis=1, keepdims=True) - minimum) / (2**bits - 1)
    scaled = jnp.where(step > 0, (rows - minimum) / step, 0.0)
    codes = jnp.floor(scaled + _uniform(key, rows.shape))
    codes = jnp.clip(codes, 0, 2**bits - 1)
    return GroupCodes(_join(codes, bits), minimum[:, 0], step[:, 0], x.shape, x.dtype, bits)


def dequantize(codes: GroupCodes) -> Array:
    """Returns `minimum + step * code` in the shape and dtype of the original array."""
    rows = _split(codes.words, codes.bits).astype(jnp.float32)
    values = codes.minimum[:, None] + codes.step[:, None] * rows
    size = math.prod(codes.shape)
    return values.reshape(-1)[:size].reshape(codes.shape).astype(codes.dtype)


def _rows(x: Array, group_size: int) -> Array:
    missing = -x.size % group_size
    flat = x.reshape(-1)
    if missing:
        flat = jnp.pad(flat, (0, missing), mode="edge")
    return flat.reshape(-1, group_size)


def _join(codes: Array, bits: int) -> Array:
    """Packs codes `[groups, n]` into 32-bit words `[groups, n * bits / 32]`.

    Word w holds the codes w, w + W, w + 2 W, ..., where W is the number of words per group. The
    reduction also forces XLA to materialise the words: it never duplicates a reduction.
    """
    per_word = 32 // bits
    parts = codes.astype(jnp.uint32).reshape(codes.shape[0], per_word, -1)
    shifts = bits * jnp.arange(per_word, dtype=jnp.uint32)[:, None]
    return lax.reduce(parts << shifts, jnp.uint32(0), lax.bitwise_or, (1,))


def _split(words: Array, bits: int) -> Array:
    shifts = bits * jnp.arange(32 // bits, dtype=jnp.uint32)[:, None]
    parts = (words[:, None, :] >> shifts) & jnp.uint32(2**bits - 1)
    return parts.reshape(words.shape[0], -1)


def _uniform(key: Key, shape: tuple[int, ...]) -> Array:
    """Uniform numbers in [0, 1), hashed from the key and the position.

    `jax.random` would materialise four bytes per entry; XLA fuses this hash into the rounding.
    The hash is the finaliser of MurmurHash3 (public domain), applied to the row, to the column and
    to the sum of both results.
    """
    words = jax.random.bits(key, (2,), jnp.uint32)
    row = _mix(jnp.arange(shape[0], dtype=jnp.uint32) ^ words[0])
    column = _mix(jnp.arange(shape[1], dtype=jnp.uint32) ^ words[1])
    mixed = _mix(row[:, None] + column)
    return (mixed >> 8).astype(jnp.float32) * jnp.float32(2**-24)


def _mix(h: Array) -> Array:
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
