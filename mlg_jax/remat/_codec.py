"""How one residual is stored between the forward and the backward pass."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from mlg_jax._checks import check_integer, check_real
from mlg_jax._ordering import wait_for_predicate
from mlg_jax._types import Array, Key
from mlg_jax.bitmap import Bitmap, pack, unpack
from mlg_jax.remat._group_quant import GROUP_BITS, GroupCodes, dequantize, quantize
from mlg_jax.remat._overflow import Overflow, overflow_of

PACKED = "mlg_jax_packed"  # checkpoint_name of everything a codec stores other than dense

# A bitmap of this density or above is no smaller than the array itself.
LARGEST_USEFUL_CAPACITY = 31 / 32


@dataclasses.dataclass(frozen=True)
class Codec:
    """Stores an array as it is; the base of the others.

    `decode(encode(x, key), never)` is x for an exact codec, and for a random one has x as its
    expectation. `never` is a false bool; what decode returns, and all it allocates, must depend on
    it, so that nothing is decoded before the backward pass arrives.
    """

    is_exact = True
    is_random = False
    is_packing = False  # into bits: floating arrays only, and without a second derivative

    def encode(self, x: Array, key: Key | None) -> Any:
        """What is kept of `x`, floating, any shape; `key` for random codecs."""
        return x

    def decode(self, encoded: Any, never: Array) -> Array:
        """`x` again."""
        return wait_for_predicate(encoded, never)

    def overflow(self, encoded: Any) -> Overflow | None:
        """Whether entries of `x` could not be kept; None: cannot happen."""
        return None


Identity = Codec


@dataclasses.dataclass(frozen=True)
class BitmapCodec(Codec):
    """One bit an entry and the non-zeros; exact until they exceed `capacity`.

    Attributes:
        capacity: share of the entries that may be non-zero, in (0, 1].
        mesh: devices over which the leading axis is split, all axes of the mesh together; each
            packs its own part, without a word to the others. None packs the array as one.
    """

    capacity: float = 0.75
    mesh: Mesh | None = None
    is_packing = True

    def __post_init__(self) -> None:
        check_real("capacity", self.capacity, 0.0, 1.0, exclusive_minimum=True)

    def encode(self, x: Array, key: Key | None) -> Any:
        """The bitmap of `x`, and the number of its non-zeros, device by device."""

        def run(x: Array) -> Any:
            bitmap = pack(x, capacity=self.capacity)
            return bitmap, bitmap.count[None]

        bitmap, counts = _by_device(self.mesh, run, x)
        return _named(bitmap), counts

    def decode(self, encoded: Any, never: Array) -> Array:
        """`x`, where it fitted."""
        return _by_device(self.mesh, unpack, _wait_bits(encoded[0], never))

    def overflow(self, encoded: Any) -> Overflow:
        """Whether there were more non-zeros than room."""
        return overflow_of(*encoded)


@dataclasses.dataclass(frozen=True)
class TopKCodec(BitmapCodec):
    """A bitmap of the largest entries; the others are taken for zeros.

    Lossy, and biased: the share that is lost is never made up for. It cannot overflow.

    Attributes:
        capacity: share of the entries that are kept, by magnitude; of equal ones all or none.
    """

    is_exact = False

    def encode(self, x: Array, key: Key | None) -> Any:
        """The bitmap of the largest entries of `x`."""
        return super().encode(_largest(x, int(self.capacity * x.size)), key)


@dataclasses.dataclass(frozen=True)
class GroupCodec(Codec):
    """Unsigned integers with one minimum and one step a group, rounded at random.

    The rounding is unbiased: the mean over keys of the decoded array is x. Zeros of an array
    without negative entries stay zeros.

    Attributes:
        bits: 2, 4 or 8 an entry.
        group_size: entries that share a minimum and a step (8 bytes together).
        mesh: as of `BitmapCodec`.

    Reference: https://arxiv.org/abs/2104.14129.
    """

    bits: int = 8
    group_size: int = 256
    mesh: Mesh | None = None
    is_exact = False
    is_random = True
    is_packing = True

    def __post_init__(self) -> None:
        if self.bits not in GROUP_BITS:
            raise ValueError(f"`bits` must be one of {list(GROUP_BITS)}; got {self.bits!r}.")
        check_integer("group_size", self.group_size, 16)
        if self.group_size % 16:
            raise ValueError(f"`group_size` must be a multiple of 16; got {self.group_size}.")

    def encode(self, x: Array, key: Key | None) -> GroupCodes:
        """The codes of `x`."""

        def run(x: Array, key: Key) -> GroupCodes:
            return quantize(x, self.bits, self.group_size, key)

        return _named(_by_device(self.mesh, run, x, key))

    def decode(self, encoded: GroupCodes, never: Array) -> Array:
        """`x` up to one step of its group."""
        codes = encoded.replace(step=wait_for_predicate(encoded.step, never))
        return _by_device(self.mesh, dequantize, codes)


@dataclasses.dataclass(frozen=True)
class BitmapGroupCodec(Codec):
    """A bitmap whose non-zeros are stored by a `GroupCodec`.

    Attributes:
        capacity: share of the entries that may be non-zero, in (0, 1].
        bits, group_size: of the non-zeros.
        mesh: as of `BitmapCodec`.
    """

    capacity: float = 0.75
    bits: int = 8
    group_size: int = 256
    mesh: Mesh | None = None
    is_exact = False
    is_random = True
    is_packing = True

    def __post_init__(self) -> None:
        BitmapCodec(self.capacity)
        GroupCodec(self.bits, self.group_size)

    def encode(self, x: Array, key: Key | None) -> Any:
        """Bitmap without values, the codes of the values, and the number of non-zeros."""

        def run(x: Array, key: Key) -> Any:
            bitmap = pack(x, capacity=self.capacity)
            codes = quantize(bitmap.values, self.bits, self.group_size, key)
            empty = dataclasses.replace(bitmap, values=jnp.zeros(0, x.dtype))
            return empty, codes, bitmap.count[None]

        bitmap, codes, counts = _by_device(self.mesh, run, x, key)
        return _named((bitmap, codes)), counts

    def decode(self, encoded: Any, never: Array) -> Array:
        """`x`, every non-zero up to one step of its group."""

        def run(encoded: Any) -> Array:
            bitmap, codes = encoded
            return unpack(dataclasses.replace(bitmap, values=dequantize(codes)))

        bitmap, codes = encoded[0]
        codes = codes.replace(step=wait_for_predicate(codes.step, never))
        return _by_device(self.mesh, run, (_wait_bits(bitmap, never), codes))

    def overflow(self, encoded: Any) -> Overflow:
        """Whether there were more non-zeros than room."""
        (bitmap, _), counts = encoded
        return overflow_of(bitmap, counts)


@dataclasses.dataclass(frozen=True)
class HostCodec(Codec):
    """Moved to the host's memory; none of the device's is used between the passes."""

    def encode(self, x: Array, key: Key | None) -> Array:
        """`x` in pinned host memory."""
        return jax.device_put(x, jax.memory.Space.Host)

    def decode(self, encoded: Array, never: Array) -> Array:
        """`x` back on the device."""
        return wait_for_predicate(jax.device_put(encoded, jax.memory.Space.Device), never)


def _by_device(mesh: Mesh | None, fn: Any, argument: Any, key: Key | None = None) -> Any:
    """`fn(argument)`, or `fn(argument, key)`, of every device's own part of the leading axis."""
    if mesh is None or mesh.size == 1:
        return fn(argument) if key is None else fn(argument, key)
    names = mesh.axis_names
    parts = PartitionSpec(names)
    if key is None:
        return jax.shard_map(fn, mesh=mesh, in_specs=parts, out_specs=parts)(argument)

    def run(argument: Any, key: Key) -> Any:
        return fn(argument, jax.random.fold_in(key, lax.axis_index(names)))

    specs = (parts, PartitionSpec())
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=parts)(argument, key)


def _largest(x: Array, count: int) -> Array:
    """`x` with zeros for all but its `count` largest magnitudes.

    The threshold is found bit by bit: magnitudes of floats are in the order of their bits. A sort
    would need indices as large as x.
    """
    magnitude = lax.bitcast_convert_type(jnp.abs(x.astype(jnp.float32)), jnp.uint32)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        fits = jnp.sum(magnitude >= middle, dtype=jnp.int32) <= count
        return jnp.where(fits, low, middle + 1), jnp.where(fits, middle, high)

    bounds = (jnp.uint32(1), jnp.uint32(2**32 - 1))
    threshold = lax.fori_loop(0, 32, halve, bounds)[1]
    return jnp.where(magnitude >= threshold, x, 0)


def bitmap_or_dense(capacity: float, mesh: Mesh | None = None) -> Codec:
    """A bitmap where it saves anything."""
    check_real("capacity", capacity, 0.0, 1.0, exclusive_minimum=True)
    return BitmapCodec(capacity, mesh) if capacity < LARGEST_USEFUL_CAPACITY else Identity()


def _named(tree: Any) -> Any:
    return jax.tree.map(lambda x: checkpoint_name(x, PACKED), tree)


def _wait_bits(bitmap: Bitmap, never: Array) -> Bitmap:
    """Everything but the values waits: the values are only read where the bits say so."""
    return dataclasses.replace(wait_for_predicate(bitmap, never), values=bitmap.values)
