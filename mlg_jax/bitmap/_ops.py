"""Packing and unpacking without temporaries of the array's size."""

import functools
import math

import jax
import jax.numpy as jnp

from mlg_jax._checks import (
    check_choice,
    check_float_dtype,
    check_floating,
    check_instance,
    check_real,
)
from mlg_jax._types import Array, Float
from mlg_jax.bitmap._format import BLOCK, WORD, Bitmap, bits_of, num_blocks_of, num_slots_of

IMPLEMENTATIONS = ("pallas", "xla")
# XLA:CPU of jax 0.10 would copy the whole buffer to float32 and back at every write of a bfloat16,
# and quiet its NaNs. The integer view costs temporaries instead: 1 + capacity times the array.
_MOVES_BFLOAT16 = jax.__version_info__ >= (0, 11)
_GROUP = 8  # entries moved by one iteration; 16 take XLA:CPU minutes to compile


def pack(
    x: Float[Array, "*shape"], *, capacity: float | None = None, implementation: str = "xla"
) -> Bitmap:
    """Stores an array as one bit an entry and the values that are not zero.

    Exact: `unpack(pack(x))` has the bits of `x`, as long as the values fit. If they do not,
    `overflowed` of the result is true, `words` and `offsets` are right all the same, and
    the values that did not fit are lost. No gradient passes: what is packed is a residual.

    On CPU entries are moved one after the other by a loop that XLA compiles into one kernel,
    elsewhere by a scatter. On a sharded mesh call it inside `jax.shard_map`, with one leading axis'
    name as the specification of every buffer: each device then packs its own part and nothing
    is communicated.

    Args:
        x: floating, any shape, of fewer than 2**31 entries.
        capacity: the largest fraction of entries that may be non-zero, in (0, 1]; None is 1,
            which always fits.
        implementation: `xla`, or `pallas` for a kernel written in Triton (NVIDIA GPUs only).

    Returns:
        A `Bitmap` of about `N / 8 + itemsize * capacity * N` bytes for N entries.

    Raises:
        TypeError: `x` is not a floating array, `capacity` is no number.
        ValueError: `capacity` is out of range, `implementation` is unknown.

    Example:
        >>> bitmap = pack(jnp.array([0.0, 1.5, 0.0, -0.0]), capacity=0.5)
        >>> int(bitmap.count), bool(bitmap.overflowed)
        (2, False)
        >>> unpack(bitmap)
        Array([ 0. ,  1.5,  0. , -0. ], dtype=float32)

    Reference: BitTrain, https://arxiv.org/abs/2110.15362.
    """
    check_floating("x", x)
    check_float_dtype("x", x.dtype)
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    if capacity is not None:
        check_real("capacity", capacity, 0.0, 1.0, exclusive_minimum=True)
    if x.size >= 2**31:
        raise ValueError(f"`x` must have fewer than 2**31 entries; got {x.size}.")
    num_values = x.size if capacity is None else math.ceil(capacity * x.size)
    return _pack(jax.lax.stop_gradient(jnp.asarray(x)), num_values, implementation)


def unpack(bitmap: Bitmap, *, implementation: str = "xla") -> Float[Array, "*shape"]:
    """The array that was packed, bit for bit.

    Args:
        bitmap: what `pack` returned.
        implementation: `xla`, or `pallas` for a kernel written in Triton (NVIDIA GPUs only).

    Returns:
        An array of the shape and dtype that were packed. After an overflow the values that were
        lost are replaced by unspecified ones; check `bitmap.overflowed`.

    Raises:
        TypeError: `bitmap` is no `Bitmap`.
        ValueError: `implementation` is unknown.

    Reference: BitTrain, https://arxiv.org/abs/2110.15362.
    """
    check_instance("bitmap", bitmap, Bitmap)
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    return _unpack(bitmap, implementation)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _pack(x: Array, capacity: int, implementation: str) -> Bitmap:
    flat = x.reshape(-1)
    words, offsets = words_and_offsets(flat)
    if implementation == "pallas":
        from mlg_jax.bitmap import _pallas  # experimental in JAX: loaded for those who ask

        values = _pallas.compact(flat, offsets, num_slots_of(capacity))
    else:
        values = _compact(flat, words, offsets, num_slots_of(capacity))
    return Bitmap(words, values, offsets, x.shape, x.dtype, capacity)


@functools.partial(jax.jit, static_argnums=1)
def _unpack(bitmap: Bitmap, implementation: str) -> Array:
    if implementation == "pallas":
        from mlg_jax.bitmap import _pallas  # as above

        bits = _pallas.expand(bitmap)
    else:
        bits = _expand(bitmap)
    # Cut while the entries are integers: on some versions XLA:CPU slices bfloat16 as float32.
    bits = bits[: bitmap.size].reshape(bitmap.shape)
    return jax.lax.bitcast_convert_type(bits, bitmap.dtype)


def words_and_offsets(flat: Float[Array, " n"]) -> tuple[Array, Array]:
    """The words and offsets of a flattened array."""
    body, tail = _whole_words(bits_of(flat))
    num_missing = BLOCK // WORD * num_blocks_of(flat.size) - (body.size + tail.size) // WORD
    words = jnp.concatenate([_words(body), _words(tail), jnp.zeros(num_missing, jnp.uint32)])
    counts = jnp.sum(jax.lax.population_count(words).reshape(-1, BLOCK // WORD), axis=1)
    ends = jnp.cumsum(counts.astype(jnp.int32), dtype=jnp.int32)
    return words, jnp.concatenate([jnp.zeros(1, jnp.int32), ends])


def _whole_words(bits: Array) -> tuple[Array, Array]:
    """What fills whole words, and the rest padded to one: padding everything would copy it."""
    size = bits.size - bits.size % WORD
    tail = bits[size:]
    return bits[:size], jnp.pad(tail, (0, -tail.size % WORD))


def _words(bits: Array) -> Array:
    is_set = (bits != 0).reshape(-1, WORD)
    powers = jnp.left_shift(jnp.uint32(1), jnp.arange(WORD, dtype=jnp.uint32))
    return jnp.sum(is_set * powers, axis=1, dtype=jnp.uint32)


def _compact(flat: Array, words: Array, offsets: Array, num_slots: int) -> Array:
    """All entries that are not zero, in order, then zeros."""
    return jax.lax.platform_dependent(
        flat,
        words,
        offsets,
        # One batch entry after the other: with a batch of positions the loop is no kernel.
        cpu=jax.custom_batching.sequential_vmap(
            functools.partial(_compact_by_loop, num_slots=num_slots)
        ),
        default=functools.partial(_compact_by_scatter, num_slots=num_slots),
    )


def _compact_by_loop(flat: Array, words: Array, offsets: Array, *, num_slots: int) -> Array:
    """Writes every entry to the next slot, which only advances past those that are not zero."""
    entries = flat if _MOVES_BFLOAT16 or flat.dtype != jnp.bfloat16 else bits_of(flat)
    # A zero that depends on the input, or the buffer would be allocated before there is any.
    zero = jnp.minimum(offsets[-1], 0)
    state = jnp.full(num_slots, zero.astype(entries.dtype)), zero.astype(jnp.uint32)
    num_words = flat.size // WORD
    state = _append(state, entries, words[:num_words])
    state = _append(state, _whole_words(entries)[1], words[num_words:][:1])
    return jax.lax.bitcast_convert_type(state[0], flat.dtype)


def _append(state: tuple[Array, Array], entries: Array, words: Array) -> tuple[Array, Array]:
    """Writes the entries of `words` into `values` from slot `start` on, the two of `state`."""
    if not entries.size or not words.size:
        return state

    def move_group(index: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        values, start = state
        index = index.astype(jnp.uint32)
        word = _slice(words, index // (WORD // _GROUP), 1)[0]
        mask = (word >> (index % (WORD // _GROUP) * _GROUP)) & (2**_GROUP - 1)
        group = _slice(entries, index * _GROUP, _GROUP)
        for k in range(_GROUP):
            slot = start + jax.lax.population_count(mask & (2**k - 1))
            values = jax.lax.dynamic_update_slice(
                values, group[k : k + 1], (slot,), allow_negative_indices=False
            )
        return values, start + jax.lax.population_count(mask)

    return jax.lax.fori_loop(0, words.size * (WORD // _GROUP), move_group, state)


def _slice(array: Array, start: Array, size: int) -> Array:
    return jax.lax.dynamic_slice(array, (start,), (size,), allow_negative_indices=False)


def _compact_by_scatter(flat: Array, words: Array, offsets: Array, *, num_slots: int) -> Array:
    is_set, slots = _slots(words, offsets, num_slots)
    slots = jnp.where(is_set, slots, num_slots).reshape(-1)[: flat.size]
    values = jnp.zeros(num_slots, flat.dtype)
    return values.at[slots].set(flat, mode="drop", unique_indices=True)


def _expand(bitmap: Bitmap) -> Array:
    """The bits of all entries, and zeros to fill the last word."""
    num_words = -(-bitmap.size // WORD)
    is_set, slots = _slots(bitmap.words, bitmap.offsets, bitmap.capacity)
    # In bounds: a word starts at the capacity at most, and then `values` has one word more.
    values = bits_of(bitmap.values).at[slots[:num_words]].get(mode="promise_in_bounds")
    return jnp.where(is_set[:num_words], values, jnp.zeros((), values.dtype)).reshape(-1)


def _slots(words: Array, offsets: Array, limit: int) -> tuple[Array, Array]:
    """Whether each entry is set, and its slot; `[words, 32]` each, rows starting by `limit`."""
    counts = jax.lax.population_count(words).astype(jnp.int32).reshape(-1, BLOCK // WORD)
    starts = offsets[:-1, None] + jnp.cumsum(counts, axis=1, dtype=jnp.int32) - counts
    place = jnp.arange(WORD, dtype=jnp.uint32)
    below = jax.lax.population_count(words[:, None] & ((jnp.uint32(1) << place) - 1))
    slots = jnp.minimum(starts, limit).reshape(-1)[:, None] + below.astype(jnp.int32)
    return (words[:, None] >> place) & 1 == 1, slots
