"""Packing and unpacking without temporaries as large as the array."""

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
# At every write of a bfloat16, XLA:CPU of jax 0.10 converts the whole buffer to float32 and back,
# which also quiets NaNs. Moving integers avoids this; their temporaries take 1 + capacity times
# the array's size.
_MOVES_BFLOAT16 = jax.__version_info__ >= (0, 11)
_GROUP = 8  # entries per iteration; with 16, XLA:CPU takes minutes to compile the loop


def pack(
    x: Float[Array, "*shape"], *, capacity: float | None = None, implementation: str = "xla"
) -> Bitmap:
    """Stores an array as one bit per entry and the values of its non-zero entries.

    Exact: `unpack(pack(x))` is bit-identical to `x` as long as the values fit. Otherwise the
    result's `overflowed` is true, `words` and `offsets` are still right, and the values that did
    not fit are lost. No gradient flows through `pack`: it is meant for residuals.

    On CPU the entries are moved one by one in a loop that XLA compiles into a single kernel, on
    other devices by a scatter. For sharded arrays call it inside `jax.shard_map` with
    `PartitionSpec(axis)` as the specification of every buffer: each device then packs its own part
    without communication.

    Args:
        x: floating-point array of any shape with fewer than 2**31 entries.
        capacity: largest fraction of entries that may be non-zero, in (0, 1]. None means 1, which
            cannot overflow.
        implementation: `xla`, or `pallas` for a Triton kernel (NVIDIA GPUs only).

    Returns:
        A `Bitmap` of about `N / 8 + itemsize * capacity * N` bytes for N entries.

    Raises:
        TypeError: `x` is not a floating-point array, or `capacity` is not a number.
        ValueError: `x` has too many entries, `capacity` is out of range, or `implementation` is
            unknown.

    Examples:
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
    """Restores the array that was packed, bit for bit.

    Args:
        bitmap: the result of `pack`.
        implementation: `xla`, or `pallas` for a Triton kernel (NVIDIA GPUs only).

    Returns:
        An array with the original shape and dtype. After an overflow (see `bitmap.overflowed`),
        unspecified values take the place of those that were lost.

    Raises:
        TypeError: `bitmap` is not a `Bitmap`.
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
        from mlg_jax.bitmap import _pallas  # Pallas is experimental: import it only when asked for

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
    # Slice integers, not floats: some versions of XLA:CPU convert bfloat16 to float32 to slice it.
    bits = bits[: bitmap.size].reshape(bitmap.shape)
    return jax.lax.bitcast_convert_type(bits, bitmap.dtype)


def words_and_offsets(flat: Float[Array, " n"]) -> tuple[Array, Array]:
    """The `words` and `offsets` of a flattened array's bitmap."""
    body, tail = _whole_words(bits_of(flat))
    num_missing = BLOCK // WORD * num_blocks_of(flat.size) - (body.size + tail.size) // WORD
    words = jnp.concatenate([_words(body), _words(tail), jnp.zeros(num_missing, jnp.uint32)])
    counts = jnp.sum(jax.lax.population_count(words).reshape(-1, BLOCK // WORD), axis=1)
    ends = jnp.cumsum(counts.astype(jnp.int32), dtype=jnp.int32)
    return words, jnp.concatenate([jnp.zeros(1, jnp.int32), ends])


def _whole_words(bits: Array) -> tuple[Array, Array]:
    """The entries of all full words, and the rest padded to a word.

    Padding the whole array instead would copy it.
    """
    size = bits.size - bits.size % WORD
    tail = bits[size:]
    return bits[:size], jnp.pad(tail, (0, -tail.size % WORD))


def _words(bits: Array) -> Array:
    is_set = (bits != 0).reshape(-1, WORD)
    powers = jnp.left_shift(jnp.uint32(1), jnp.arange(WORD, dtype=jnp.uint32))
    return jnp.sum(is_set * powers, axis=1, dtype=jnp.uint32)


def _compact(flat: Array, words: Array, offsets: Array, num_slots: int) -> Array:
    """The non-zero entries in order, followed by zeros."""
    return jax.lax.platform_dependent(
        flat,
        words,
        offsets,
        # Sequential under `vmap`: with batched positions XLA cannot compile the loop as one kernel.
        cpu=jax.custom_batching.sequential_vmap(
            functools.partial(_compact_by_loop, num_slots=num_slots)
        ),
        default=functools.partial(_compact_by_scatter, num_slots=num_slots),
    )


def _compact_by_loop(flat: Array, words: Array, offsets: Array, *, num_slots: int) -> Array:
    """Writes each entry to the current slot, and moves to the next slot only after a non-zero."""
    entries = flat if _MOVES_BFLOAT16 or flat.dtype != jnp.bfloat16 else bits_of(flat)
    # The zeros depend on the input: otherwise XLA allocates the buffer before the input exists.
    zero = jnp.minimum(offsets[-1], 0)
    state = jnp.full(num_slots, zero.astype(entries.dtype)), zero.astype(jnp.uint32)
    num_words = flat.size // WORD
    state = _append(state, entries, words[:num_words])
    state = _append(state, _whole_words(entries)[1], words[num_words:][:1])
    return jax.lax.bitcast_convert_type(state[0], flat.dtype)


def _append(state: tuple[Array, Array], entries: Array, words: Array) -> tuple[Array, Array]:
    """Appends the non-zeros of `entries`, which `words` marks, to `state = (values, start)`.

    `start` is the next free slot of `values`.
    """
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
    # As above, so that zeros for all later bitmaps are not written at the beginning.
    values = jnp.full(num_slots, jnp.minimum(offsets[-1], 0).astype(flat.dtype))
    return values.at[slots].set(flat, mode="drop", unique_indices=True)


def _expand(bitmap: Bitmap) -> Array:
    """The bit patterns of all entries; the last word is padded with zeros."""
    num_words = -(-bitmap.size // WORD)
    is_set, slots = _slots(bitmap.words, bitmap.offsets, bitmap.capacity)
    # In bounds: no word starts after the capacity, and `values` has SPARE slots beyond it.
    values = bits_of(bitmap.values).at[slots[:num_words]].get(mode="promise_in_bounds")
    return jnp.where(is_set[:num_words], values, jnp.zeros((), values.dtype)).reshape(-1)


def _slots(words: Array, offsets: Array, limit: int) -> tuple[Array, Array]:
    """Whether each entry is non-zero, and its slot in `values`; both `[words, 32]`.

    After an overflow, the first slot of a word is clipped to `limit`.
    """
    counts = jax.lax.population_count(words).astype(jnp.int32).reshape(-1, BLOCK // WORD)
    starts = offsets[:-1, None] + jnp.cumsum(counts, axis=1, dtype=jnp.int32) - counts
    place = jnp.arange(WORD, dtype=jnp.uint32)
    below = jax.lax.population_count(words[:, None] & ((jnp.uint32(1) << place) - 1))
    slots = jnp.minimum(starts, limit).reshape(-1)[:, None] + below.astype(jnp.int32)
    return (words[:, None] >> place) & 1 == 1, slots
