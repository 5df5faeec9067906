"""Triton kernels that move the values; XLA computes the words and offsets in any case."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from mlg_jax._types import Array, Float
from mlg_jax.bitmap._format import BLOCK, WORD, Bitmap, bits_of, num_blocks_of, num_slots_of

_PARAMS = plt.CompilerParams(num_warps=4, num_stages=1)


def compact(
    flat: Float[Array, " n"], offsets: Array, num_slots: int, *, interpret: bool = False
) -> Float[Array, " slots"]:
    """The non-zero entries in order, followed by zeros; one program instance per block.

    Args:
        flat: the flattened array.
        offsets: `offsets` of its bitmap.
        num_slots: length of the result.
        interpret: whether to run Pallas' interpreter, which works on any device.
    """
    values = jnp.zeros(num_slots, flat.dtype)
    num_blocks = num_blocks_of(flat.size)
    if not num_blocks:
        return values
    kernel = functools.partial(_compact_kernel, size=flat.size, num_slots=num_slots)
    return pl.pallas_call(
        kernel,
        grid=(num_blocks,),
        out_shape=jax.ShapeDtypeStruct((num_slots,), flat.dtype),
        input_output_aliases={2: 0},  # slots without a value stay zero
        compiler_params=_PARAMS,
        interpret=interpret,
        name="bitmap_compact",
    )(flat, offsets, values)


def _compact_kernel(flat, offsets, _, values, *, size: int, num_slots: int):
    block = pl.program_id(0)
    places = block * BLOCK + jnp.arange(BLOCK)
    entries = plt.load(flat.at[places], mask=places < size, other=0.0)
    is_set = bits_of(entries) != 0
    rank = jnp.cumsum(is_set.astype(jnp.int32))
    # Zeros get distinct slots after the values: at masked positions the interpreter writes back
    # the old entry, which would undo a value written to the same slot.
    behind = offsets[block + 1] - offsets[block] + jnp.arange(BLOCK) - rank
    slots = offsets[block] + jnp.where(is_set, rank - 1, behind)
    plt.store(values.at[slots], entries, mask=is_set & (slots < num_slots))


def expand(bitmap: Bitmap, *, interpret: bool = False) -> Array:
    """The bit patterns of all entries, padded to whole blocks; one program instance per block."""
    bits = bits_of(bitmap.values)
    num_blocks = num_blocks_of(bitmap.size)
    if not num_blocks:
        return jnp.zeros(0, bits.dtype)
    kernel = functools.partial(_expand_kernel, num_slots=num_slots_of(bitmap.capacity))
    return pl.pallas_call(
        kernel,
        grid=(num_blocks,),
        out_shape=jax.ShapeDtypeStruct((num_blocks * BLOCK,), bits.dtype),
        compiler_params=_PARAMS,
        interpret=interpret,
        name="bitmap_expand",
    )(bitmap.words, bits, bitmap.offsets)


def _expand_kernel(words, values, offsets, bits, *, num_slots: int):
    block = pl.program_id(0)
    places = block * BLOCK + jnp.arange(BLOCK)
    shifts = (places % WORD).astype(jnp.uint32)
    is_set = (plt.load(words.at[places // WORD]) >> shifts) & 1 == 1
    slots = offsets[block] + jnp.cumsum(is_set.astype(jnp.int32)) - 1
    zero = jnp.zeros((), bits.dtype)
    entries = plt.load(values.at[slots], mask=is_set & (slots < num_slots), other=zero)
    plt.store(bits.at[places], entries)
