"""The packed array: its buffers, their sizes, and what holds between them."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from mlg_jax._types import Array

WORD = 32  # entries a word
BLOCK = 1024  # entries an offset
SPARE = WORD  # a word that starts at the capacity still ends inside `values`


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["words", "values", "offsets"],
    meta_fields=["shape", "dtype", "capacity"],
)
@dataclasses.dataclass(frozen=True)
class Bitmap:
    """One array of N entries, exactly: which entries are not zero, and those in order.

    "Not zero" is said of the bits: -0.0, denormals, infinities and NaN are kept as they are.
    With `B = ceil(N / 1024)` blocks, entry `e` of the flattened array and `m` of the count:

    - bit `e % 32` of `words[e // 32]` is set if and only if entry `e` is not zero;
    - `values[k]` is the k-th such entry for `k < min(m, capacity)`, and 0 from `m` on;
      if `m` exceeds the capacity, what lies from there on is unspecified;
    - `offsets[b]` is the number of entries before block `b` that are not zero; `offsets[B] = m`.

    A caller may add an integer zero to words and offsets, to order computations.
    Every buffer may have leading axes (`vmap`); `shape` is that of one array.
    """

    # Arrays; Any, because `jax.eval_shape` and transformations put descriptions in their place.
    words: Any  # uint32, [32 B]
    values: Any  # of the dtype, [capacity + 32]
    offsets: Any  # int32, [B + 1]
    shape: tuple[int, ...]
    dtype: Any
    capacity: int  # values that fit

    @property
    def count(self) -> Array:
        """Number of entries that are not zero (int32 scalar), whether or not they fit."""
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
    """B, the number of blocks of `size` entries."""
    return -(-size // BLOCK)


def num_slots_of(capacity: int) -> int:
    """The length of `values`."""
    return capacity + SPARE


def bits_of(x: Array) -> Array:
    """The entries of `x` as unsigned integers, in its shape."""
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
