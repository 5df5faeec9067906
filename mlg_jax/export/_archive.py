"""Files of packed models: a safetensors container, written atomically, and validated on reading."""

import hashlib
import io
import os
from collections.abc import Sequence
from typing import IO

import numpy as np

from mlg_jax._atomic import write_atomically
from mlg_jax._errors import printable
from mlg_jax.export._deflate import (
    MAX_EXPANSION,
    deflate_arrays,
    deflate_text,
    inflate_arrays,
    inflate_text,
    symbol_bytes,
)
from mlg_jax.export._index import Layout, PackedFileError, index_of, layout_bytes, read_index
from mlg_jax.export._json import from_json, to_json
from mlg_jax.export._packed import PackedModel
from mlg_jax.export._tensor import PackedTensor, num_constants

PACKED_SUFFIX = ".mlg"  # where a name must tell packed models from other files
FORMAT = "mlg_jax packed model"
PLAIN, DEFLATED = "1", "2"  # format versions
BLOB = "packed"  # the only tensor of the container
MAX_HEADER_BYTES = 4096
MAX_INDEX_BYTES = 2**22
_ALIGNMENT = 8  # in bytes, of the data in a safetensors file


def write_packed(path: str | os.PathLike[str], packed: PackedModel) -> int:
    """Writes a packed model atomically; equal models give identical files.

    Args:
        path: the file; its directory must exist.
        packed: as returned by `pack_variables`.

    Returns:
        The size of the file in bytes.

    Raises:
        OSError: the file cannot be written.
        PackedFileError: the format cannot represent the model (its names, ranks or sizes).
    """
    data = to_bytes(packed)
    write_atomically(path, data)
    return len(data)


def read_packed(path: str | os.PathLike[str]) -> PackedModel:
    """Reads a packed model from an untrusted file.

    Sizes are compared with the length of the file before anything is allocated, the checksum must
    match, and nothing in the file is executed.

    Raises:
        OSError: the file cannot be opened.
        PackedFileError: the file is not a packed model, is damaged, or has another format version.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise PackedFileError(f"`path` must be a packed model; got {path}: not a regular file.")
    with open(path, "rb") as file:
        try:
            return _read(file, os.fstat(file.fileno()).st_size)
        except PackedFileError as error:
            raise PackedFileError(f"`path` must be a packed model; got {path}: {error}.") from None


def to_bytes(packed: PackedModel, version: str | None = None) -> bytes:
    """The content of a file in the format of docs/file_format.md.

    Without a version, it is the deflated one if that makes the arrays shorter.
    """
    tensors = sorted(packed.tensors, key=lambda tensor: tensor.path)
    index, data = index_of(tensors, packed.manifest), _join(tensors)
    if version != PLAIN:
        deflated = deflate_arrays(tensors)
        version = DEFLATED if len(deflated) < len(data) or version == DEFLATED else PLAIN
        if version == DEFLATED:
            index, data = deflate_text(index), deflated
    blob = len(index).to_bytes(4, "little") + index + data
    content = _header_of(blob, version) + blob
    try:
        _read(io.BytesIO(content), len(content))
    except PackedFileError as error:
        raise PackedFileError(f"`packed` must fit the file format; {error}.") from None
    return content


def _join(tensors: Sequence[PackedTensor]) -> bytes:
    """Constants and packed codes, or plain values, of all arrays."""
    parts = ((np.asarray(t.constants, "<f4"), np.asarray(t.data)) for t in tensors)
    return b"".join(array.tobytes() for pair in parts for array in pair)


def _header_of(blob: bytes, version: str) -> bytes:
    """Length and header of the container.

    The safetensors library would write the metadata in an order that changes from run to run.
    """
    header = to_json(
        {
            "__metadata__": {
                "format": FORMAT,
                "format_version": version,
                "sha256": hashlib.sha256(blob).hexdigest(),
            },
            BLOB: {"dtype": "U8", "shape": [len(blob)], "data_offsets": [0, len(blob)]},
        }
    )
    header += b" " * (-len(header) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header


def _read(file: IO[bytes], num_bytes: int) -> PackedModel:
    """Reads the model from a file of `num_bytes` bytes."""
    header_bytes = int.from_bytes(_take(file, 8, num_bytes, "length"), "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise PackedFileError(
            f"its header has {header_bytes} bytes; {MAX_HEADER_BYTES} are allowed"
        )
    header = _take(file, header_bytes, num_bytes - 8, "header")
    blob_bytes = num_bytes - 8 - header_bytes
    version, checksum = _read_header(header, blob_bytes)
    prefix = _take(file, 4, blob_bytes, "index length")
    index_bytes = int.from_bytes(prefix, "little")
    if index_bytes > MAX_INDEX_BYTES:
        raise PackedFileError(f"its index has {index_bytes} bytes; {MAX_INDEX_BYTES} are allowed")
    stored = _take(file, index_bytes, blob_bytes - 4, "index")
    index = stored if version == PLAIN else inflate_text(stored, MAX_INDEX_BYTES)
    layouts, manifest = read_index(index)
    data_bytes = blob_bytes - 4 - index_bytes
    _check_length(layouts, version, data_bytes)
    data = _take(file, data_bytes, data_bytes, "data")
    digest = hashlib.sha256(prefix + stored)
    digest.update(data)
    if digest.hexdigest() != checksum:
        raise PackedFileError("its content does not match its checksum")
    if version == DEFLATED:
        data = inflate_arrays(data, layouts)
    return PackedModel(tuple(_split(np.frombuffer(data, np.uint8), layouts)), manifest)


def _check_length(layouts: Sequence[Layout], version: str, num_bytes: int) -> None:
    """Raises PackedFileError unless arrays of these layouts can take `num_bytes` bytes."""
    plain = sum(map(layout_bytes, layouts))
    if version == PLAIN and num_bytes != plain:
        raise PackedFileError(f"its index describes {plain} bytes of data, but it has {num_bytes}")
    at_least = sum(map(symbol_bytes, layouts)) / MAX_EXPANSION
    if version == DEFLATED and not at_least <= num_bytes < plain:
        raise PackedFileError(
            f"its index describes {plain} bytes of data, which cannot be deflated to {num_bytes}"
        )


def _take(file: IO[bytes], count: int, available: int, what: str) -> bytes:
    """Reads the next `count` bytes; raises PackedFileError if the file has fewer."""
    data = file.read(count) if count <= available else b""
    if len(data) != count:
        raise PackedFileError(f"it ends within its {what} of {count} bytes")
    return data


def _read_header(header: bytes, blob_bytes: int) -> tuple[str, str]:
    """Format version and checksum of a container whose header must describe `blob_bytes` bytes."""
    fields = from_json(header, "header", PackedFileError)
    metadata = fields.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise PackedFileError(f"its header does not name the format {FORMAT!r}")
    if (version := metadata.get("format_version")) not in (PLAIN, DEFLATED):
        raise PackedFileError(
            f"its format version is {version!r:.20}; this library reads {PLAIN!r} and {DEFLATED!r}"
        )
    expected = {"dtype": "U8", "shape": [blob_bytes], "data_offsets": [0, blob_bytes]}
    if set(fields) != {"__metadata__", BLOB} or fields[BLOB] != expected:
        raise PackedFileError(f"its header does not describe its {blob_bytes} bytes of data")
    return version, str(metadata.get("sha256"))


def _split(data: np.ndarray, layouts: Sequence[Layout]) -> list[PackedTensor]:
    """Splits the data into tensors, in the order of the index."""
    tensors, start = [], 0
    for layout in layouts:
        path, shape, scheme, bits = layout
        stop, middle = start + layout_bytes(layout), start + 4 * num_constants(scheme)
        constants = data[start:middle].view("<f4").astype(np.float32)
        tensor = PackedTensor(data[middle:stop], constants, path, shape, scheme, bits)
        _check_content(tensor)
        tensors.append(tensor)
        start = stop
    return tensors


def _check_content(tensor: PackedTensor) -> None:
    """Raises PackedFileError for invalid values and for unused bits that are set.

    Unused bits are rejected so that every model has exactly one file.
    """
    num_spare = 8 * tensor.data.size - tensor.size * (tensor.bits or 0)
    is_damaged = (
        int(tensor.data[-1]) >> (8 - num_spare) > 0
        if tensor.bits is not None
        else tensor.scheme == "bool" and bool(np.any(tensor.data > 1))
    )
    if is_damaged or not np.all(np.isfinite(tensor.constants)):
        raise PackedFileError(f"it has invalid bytes in {printable('/'.join(tensor.path))}")
