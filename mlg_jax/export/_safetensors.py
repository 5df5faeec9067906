"""safetensors files of many arrays: a length, a JSON header, and all bytes in a row."""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from mlg_jax.export._errors import TorchFileError
from mlg_jax.export._json import from_json

MAX_HEADER_BYTES = 2**24  # ResNet-152's is 2**17
MAX_NUMBER = 2**48  # sizes and offsets
MAX_RANK = 8
METADATA = "__metadata__"
_ALIGNMENT = 8
_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": jnp.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def from_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a file, by name; they share its memory.

    Raises:
        TorchFileError: it is no such file, or a damaged one.
    """
    header_bytes = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header_bytes > min(len(data) - 8, MAX_HEADER_BYTES):
        raise TorchFileError(f"a header of {header_bytes} bytes in a file of {len(data)}")
    start = 8 + header_bytes
    header = from_json(data[8:start], "header", TorchFileError)
    header.pop(METADATA, None)
    body = memoryview(data)[start:]
    arrays = {name: _array(name, entry, body) for name, entry in header.items()}
    total = sum(array.nbytes for array in arrays.values())
    if total > len(body):
        raise TorchFileError(f"arrays of {total} bytes in {len(body)}")
    return arrays


def _array(name: str, entry: Any, body: memoryview) -> np.ndarray:
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [low, high]}:
            numbers = [*shape, low, high]
            if kind in _DTYPES and all(type(n) is int and 0 <= n <= MAX_NUMBER for n in numbers):
                dtype = _DTYPES[kind]
                is_whole = high - low == dtype.itemsize * math.prod(shape) and high <= len(body)
                # NumPy multiplies all sizes but zeros.
                is_small = math.prod(n or 1 for n in shape) <= MAX_NUMBER
                if is_whole and is_small and len(shape) <= MAX_RANK:
                    return np.frombuffer(body[low:high], dtype).reshape(shape)
    raise TorchFileError(f"{name!r:.80} must be an array within the file; got {entry!r:.200}")


def to_safetensors(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A file of float32 arrays; equal arrays give equal bytes."""
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    parts, low = [], 0
    for name in sorted(arrays):
        part = np.ascontiguousarray(arrays[name], "<f4").tobytes()
        high = low + len(part)
        shape = list(np.shape(arrays[name]))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [low, high]}
        parts.append(part)
        low = high
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])
