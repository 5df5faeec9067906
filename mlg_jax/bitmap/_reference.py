"""A direct implementation of packing and unpacking: an oracle for tests."""

import jax
import jax.numpy as jnp

from mlg_jax._types import Array
from mlg_jax.bitmap._format import BLOCK, WORD, Bitmap, bits_of, num_slots_of


def pack_reference(x: Array, capacity: int) -> Bitmap:
    """Packs `x` with room for `capacity` values; its temporaries take several times its size."""
    bits = jnp.pad(bits_of(x).reshape(-1), (0, -x.size % BLOCK))
    is_set = bits != 0
    powers = jnp.left_shift(jnp.uint32(1), jnp.arange(WORD, dtype=jnp.uint32))
    words = jnp.sum(is_set.reshape(-1, WORD) * powers, axis=1, dtype=jnp.uint32)
    counts = jnp.sum(is_set.reshape(-1, BLOCK), axis=1, dtype=jnp.int32)
    offsets = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    num_slots = num_slots_of(capacity)
    slots = jnp.where(is_set, jnp.cumsum(is_set, dtype=jnp.int32) - 1, num_slots)
    bits = jnp.zeros(num_slots, bits.dtype).at[slots].set(bits, mode="drop")
    values = jax.lax.bitcast_convert_type(bits, x.dtype)
    return Bitmap(words, values, offsets, x.shape, x.dtype, capacity)


def unpack_reference(bitmap: Bitmap) -> Array:
    """Restores the array that was packed."""
    is_set = (bitmap.words[:, None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1 == 1
    slots = jnp.cumsum(is_set.reshape(-1), dtype=jnp.int32) - 1
    values = bits_of(bitmap.values).at[slots].get(mode="clip")
    bits = jnp.where(is_set.reshape(-1), values, jnp.zeros((), values.dtype))[: bitmap.size]
    return jax.lax.bitcast_convert_type(bits.reshape(bitmap.shape), bitmap.dtype)
