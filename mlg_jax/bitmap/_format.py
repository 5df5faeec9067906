"""The packed array: its buffers, their sizes and their invariants."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from mlg_jax._types import Array

WORD = 32  # entries per word
BLOCK = 1024  # entries per offset
SPARE = WORD  # extra slots that keep the reads of a word that starts at the capacity in bounds


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["words", "values", "offsets"],
    meta_fields=["shape", "dtype", "capacity"],
)
@dataclasses.dataclass(frozen=True)
class Bitmap:
    """An exact copy of an array of N entries: the positions and values of its non-zeros.

    An entry is non-zero if any of its bits is set, so -0.0, denormals, infinities and NaN are
    preserved. With `B = ceil(N / 1024)` blocks and m non-zeros, for entry e of the flattened
    array:

    - bit `e % 32` of `words[e // 32]` is set if and only if entry e is non-zero;
    - `values[k]` is non-zero number k, for `k < min(m, capacity)`; the slots from m on are 0, or,
      if m exceeds the capacity, the slots from the capacity on are unspecified;
    - `offsets[b]` is the number of non-zeros before block b, and `offsets[B] = m`.

    To order computations, a caller may add an integer zero to words and offsets.
    Under `vmap` every buffer has leading axes; `shape` is the shape of one array.
    """

    # Any, because `jax.eval_shape` and other transformations put other objects in their place.
    words: Any  # uint32, [32 B]
    values: Any  # dtype of the array, [capacity + 32]
    offsets: Any  # int32, [B + 1]
    shape: tuple[int, ...]  # of the array
    dtype: Any  # of the array
    capacity: int  # number of values that fit

    @property
    def count(self) -> Array:
        """Number of non-zero entries (int32 scalar), whether or not they fit."""
        return self.offsets[..., -1]

    @property
    def overflowed(self) -> Array:
        """Whether values were lost (boolean scalar): the count exceeds the capacity."""
        return self.count > self.capacity

    @property
    def size(self) -> int:
        """N, the number of entries of one array."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers of one array: `128 B + itemsize (capacity + 32) + 4 (B + 1)`."""
        num_blocks = num_blocks_of(self.size)
        value_bytes = jnp.dtype(self.dtype).itemsize * num_slots_of(self.capacity)
        return BLOCK // 8 * num_blocks + value_bytes + 4 * (num_blocks + 1)


def num_blocks_of(size: int) -> int:
    """B, the number of blocks that `size` entries fill."""
    return -(-size // BLOCK)


def num_slots_of(capacity: int) -> int:
    """The length of `values` for a capacity given in entries."""
    return capacity + SPARE


def bits_of(x: Array) -> Array:
    """The bit patterns of `x` as unsigned integers, in its shape."""
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
