"""A stored array: packed codes with their constants, or plain values; and its decoding."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlg_jax._types import Array
from mlg_jax.export._bitstream import join_codes, num_bytes, split_codes, split_codes_traced
from mlg_jax.quant import QuantizedTensor, QuantSpec, decode

# Bytes per entry of the types stored unpacked.
PLAIN_BYTES = {"bool": 1, "float16": 2, "float32": 4}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["data", "constants"],
    meta_fields=["path", "shape", "scheme", "bits"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class PackedTensor:
    """One array as stored in a file; a pytree, so that a traced program can take and decode it."""

    # Typed Any, because `jax.eval_shape` and transformations replace the arrays by other objects.
    data: Any  # uint8 [bytes]: packed codes, or little-endian values
    constants: (
        Any  # float32: [2] (min, max) for `qnn`, [0] for plain values, otherwise [1] (r or E)
    )
    path: tuple[str, ...]  # collection, modules, name
    shape: tuple[int, ...]
    scheme: str  # a scheme of `QuantSpec`; for plain values a type of `PLAIN_BYTES`
    bits: int | None  # width of a code; None for plain values

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of data and constants, in a file as in memory."""
        return self.data.size + 4 * self.constants.size


def num_constants(scheme: str) -> int:
    """Number of float32 constants of a scheme."""
    return 0 if scheme in PLAIN_BYTES else 2 if scheme == "qnn" else 1


def num_data_bytes(size: int, scheme: str, bits: int | None) -> int:
    """Bytes of `data` for an array of `size` entries."""
    return size * PLAIN_BYTES[scheme] if bits is None else num_bytes(size, bits)


def pack_plain(path: tuple[str, ...], value: np.ndarray) -> PackedTensor:
    """Stores an array of a type in `PLAIN_BYTES` unchanged."""
    scheme = value.dtype.name
    stored = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).reshape(-1)
    return PackedTensor(
        stored.view(np.uint8), np.zeros(0, np.float32), path, value.shape, scheme, None
    )


def pack_codes(path: tuple[str, ...], tensor: QuantizedTensor) -> PackedTensor:
    """Stores integer codes bit-packed."""
    bits, codes = tensor.spec.bits, np.asarray(tensor.codes)
    assert bits is not None
    constants = np.array([np.asarray(c) for c in tensor.constants], np.float32)
    return PackedTensor(
        join_codes(codes, bits), constants, path, codes.shape, tensor.spec.scheme, bits
    )


def decode_tensor(tensor: PackedTensor) -> Array:
    """Decodes an array in a traced program: `fake_quantize` of the packed array, bit for bit.

    Args:
        tensor: its `data` and `constants` may be arguments of the program, so that weights stay
            packed in memory.

    Returns:
        An array with shape `tensor.shape`, float32 or, if bools were packed, bool.
    """
    if tensor.bits is None:
        data = jnp.asarray(tensor.data)
        if tensor.scheme == "bool":
            return data.reshape(tensor.shape).astype(bool)
        words = data.reshape(*tensor.shape, PLAIN_BYTES[tensor.scheme])
        dtype = jnp.dtype(tensor.scheme)
        return jax.lax.bitcast_convert_type(words, dtype).astype(jnp.float32)
    codes = split_codes_traced(jnp.asarray(tensor.data), tensor.bits, tensor.size)
    return decode(_quantized(tensor, codes, jnp.asarray(tensor.constants)))


def to_codes(tensor: PackedTensor) -> QuantizedTensor:
    """The codes as uint8 or uint16 on the host, for `mlg_jax.quant.decode`."""
    assert tensor.bits is not None, "plain values have no codes"
    return _quantized(tensor, split_codes(tensor.data, tensor.bits, tensor.size), tensor.constants)


def _quantized(tensor: PackedTensor, codes: Any, constants: Any) -> QuantizedTensor:
    spec = QuantSpec(tensor.bits, tensor.scheme)
    scalars = tuple(constants[k] for k in range(num_constants(tensor.scheme)))
    return QuantizedTensor(codes.reshape(tensor.shape), scalars, spec, jnp.dtype(jnp.float32))


def decode_on_host(tensor: PackedTensor) -> np.ndarray:
    """`decode_tensor` in NumPy, bit for bit, so that loading a file compiles nothing.

    Subnormal float32 values may differ: compiled programs may flush them to zero.
    """
    if tensor.bits is None:
        dtype = np.dtype(tensor.scheme).newbyteorder("<")
        values = tensor.data.view(dtype)
        return values.astype(bool if tensor.scheme == "bool" else np.float32).reshape(tensor.shape)
    codes = split_codes(tensor.data, tensor.bits, tensor.size)
    with np.errstate(over="ignore", invalid="ignore"):  # a hostile file may hold any finite scale
        values = _VALUES[tensor.scheme](codes.astype(np.float32), tensor.bits, *tensor.constants)
    return values.astype(np.float32, copy=False).reshape(tensor.shape)


def _grid(codes: np.ndarray, bits: int) -> np.ndarray:
    """The grid {0, 1/n, ..., 1}; rounds to float32 after the reciprocal and after the product."""
    return codes * np.float32(1.0 / (2**bits - 1))


def _symmetric(codes: np.ndarray, bits: int, r: np.float32) -> np.ndarray:
    return (2 * _grid(codes, bits) - 1) * r


def _unit(codes: np.ndarray, bits: int, r: np.float32) -> np.ndarray:
    return _grid(codes, bits)


def _unit_or_mean(codes: np.ndarray, bits: int, scale: np.float32) -> np.ndarray:
    """With one bit, 0 or the mean magnitude E."""
    return codes * scale if bits == 1 else _grid(codes, bits)


def _positive(codes: np.ndarray, bits: int, r: np.float32) -> np.ndarray:
    return _grid(codes, bits) * (2 * r)


def _affine(codes: np.ndarray, bits: int, low: np.float32, high: np.float32) -> np.ndarray:
    return _grid(codes, bits) * (high - low) + low


_VALUES: dict[str, Callable[..., np.ndarray]] = {
    "dorefa_sym": _symmetric,
    "dorefa": _unit_or_mean,
    "dorefa_pos": _positive,
    "qnn": _affine,
    "ewgs": _unit,
}
