"""Codecs: how one residual is stored between the forward and the backward pass."""

import dataclasses
from typing import Any

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from mlg_jax._checks import check_integer, check_real
from mlg_jax._ordering import wait_for_predicate
from mlg_jax._types import Array, Key
from mlg_jax.bitmap import pack, unpack
from mlg_jax.remat._group_quant import GROUP_BITS, GroupCodes, dequantize, quantize
from mlg_jax.remat._overflow import Overflow, overflow_of

PACKED = "mlg_jax_packed"  # the `checkpoint_name` of all packed residuals

# In float32, a bitmap with room for this share of the entries is as large as the array itself.
LARGEST_USEFUL_CAPACITY = 31 / 32


@dataclasses.dataclass(frozen=True)
class Codec:
    """Stores an array unchanged; the base class of the other codecs.

    `decode(encode(x, key), never)` equals x, or has x as its expectation if the codec is random.
    `never` is a predicate that is always false, but is computed from the cotangent. The result of
    `decode` and every array that it allocates must depend on `never`, so that the compiler cannot
    start to decode before the backward pass.
    """

    is_random = False  # rounds stochastically; `encode` needs a key
    is_packing = False  # stores bits: needs floating arrays and has no second derivative

    def encode(self, x: Array, key: Key | None) -> Any:
        """Returns the stored form of `x`, an array of any shape; random codecs need a `key`."""
        return x

    def decode(self, encoded: Any, never: Array) -> Array:
        """Restores `x` from its stored form."""
        return wait_for_predicate(encoded, never)

    def overflow(self, encoded: Any) -> Overflow | None:
        """How full the stored form is; None for a codec that has room for every array."""
        return None


Identity = Codec


@dataclasses.dataclass(frozen=True)
class BitmapCodec(Codec):
    """A bitmap: one bit per entry, and the values of the non-zero entries.

    Exact as long as no more than a share `capacity` of the entries is non-zero.

    Attributes:
        capacity: share of the entries that may be non-zero, in (0, 1].
        mesh: devices over which the leading axis is split, by all axes of the mesh together. Each
            device packs its own part without communication. None packs the whole array as one.
    """

    capacity: float = 0.75
    mesh: Mesh | None = None
    is_packing = True

    def __post_init__(self) -> None:
        check_real("capacity", self.capacity, 0.0, 1.0, exclusive_minimum=True)

    def encode(self, x: Array, key: Key | None) -> Any:
        """The bitmap of `x`, and the number of non-zeros on each device, `[devices]`."""

        def run(x: Array) -> Any:
            bitmap = pack(x, capacity=self.capacity)
            return bitmap, bitmap.count[None]

        bitmap, counts = _by_device(self.mesh, run, x)
        return _named(bitmap), counts

    def decode(self, encoded: Any, never: Array) -> Array:
        """Restores `x`; after an overflow, the entries that did not fit are unspecified."""
        bitmap = encoded[0]
        # The values need not wait: they are only read at positions computed from the words.
        tied = dataclasses.replace(wait_for_predicate(bitmap, never), values=bitmap.values)
        return _by_device(self.mesh, unpack, tied)

    def overflow(self, encoded: Any) -> Overflow:
        """How full the bitmaps are, and whether one of them lost values."""
        return overflow_of(*encoded)


@dataclasses.dataclass(frozen=True)
class GroupCodec(Codec):
    """Unsigned integers with one minimum and one step per group, rounded stochastically.

    The rounding is unbiased: the expectation of the decoded array over the keys is x. If no entry
    is negative, zeros are exact.

    Attributes:
        bits: per entry; 2, 4 or 8.
        group_size: number of entries that share a minimum and a step (8 bytes per group); a
            multiple of 16.
        mesh: as in `BitmapCodec`.

    Reference: https://arxiv.org/abs/2104.14129.
    """

    bits: int = 8
    group_size: int = 256
    mesh: Mesh | None = None
    is_random = True
    is_packing = True

    def __post_init__(self) -> None:
        if self.bits not in GROUP_BITS:
            raise ValueError(f"`bits` must be one of {list(GROUP_BITS)}; got {self.bits!r}.")
        check_integer("group_size", self.group_size, 16)
        if self.group_size % 16:
            raise ValueError(f"`group_size` must be a multiple of 16; got {self.group_size}.")

    def encode(self, x: Array, key: Key | None) -> GroupCodes:
        """Quantises `x` in groups."""

        def run(x: Array, key: Key) -> GroupCodes:
            return quantize(x, self.bits, self.group_size, key)

        return _named(_by_device(self.mesh, run, x, key))

    def decode(self, encoded: GroupCodes, never: Array) -> Array:
        """Restores `x`, each entry to within one step of its group."""
        codes = encoded.replace(step=wait_for_predicate(encoded.step, never))
        return _by_device(self.mesh, dequantize, codes)


def _by_device(mesh: Mesh | None, fn: Any, argument: Any, key: Key | None = None) -> Any:
    """Runs `fn(argument)` or `fn(argument, key)` on each device's part of the leading axis.

    The key differs between devices.
    """
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


def bitmap_or_dense(capacity: float, mesh: Mesh | None = None) -> Codec:
    """A bitmap where it is smaller than the array in float32, otherwise the array itself."""
    check_real("capacity", capacity, 0.0, 1.0, exclusive_minimum=True)
    return BitmapCodec(capacity, mesh) if capacity < LARGEST_USEFUL_CAPACITY else Identity()


def _named(tree: Any) -> Any:
    return jax.tree.map(lambda x: checkpoint_name(x, PACKED), tree)
