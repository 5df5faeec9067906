"""The arrays of a packed file as a DEFLATE stream: frequent codes take fewer bits than rare ones.

Most entries of a factor are much smaller than the largest, which sets the range of its codes. So
codes near zero are frequent, and Huffman codes shorten them by a quarter to a half.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np

from mlg_jax.export._bitstream import join_codes, split_codes
from mlg_jax.export._index import Layout, PackedFileError
from mlg_jax.export._tensor import PLAIN_BYTES, PackedTensor, num_constants

MAX_EXPANSION = 8  # Huffman codes take at least one bit

_RAW = -15  # a window of 2^15 bytes, without header and checksum


def symbol_bytes(layout: Layout) -> int:
    """Bytes of an array before compression: constants, then whole bytes for every entry."""
    _, shape, scheme, bits = layout
    return 4 * num_constants(scheme) + math.prod(shape) * _entry_bytes(scheme, bits)


def deflate_arrays(tensors: Sequence[PackedTensor]) -> bytes:
    """One raw stream of Huffman codes, those of every array of codes in blocks of their own."""
    stream = zlib.compressobj(9, zlib.DEFLATED, _RAW, 9, zlib.Z_HUFFMAN_ONLY)
    parts = []
    for tensor in tensors:
        constants = np.asarray(tensor.constants, "<f4").tobytes()
        data = np.asarray(tensor.data)
        if tensor.bits is None:
            parts.append(stream.compress(constants + data.tobytes()))
            continue
        codes = split_codes(data, tensor.bits, tensor.size)
        width = _entry_bytes(tensor.scheme, tensor.bits)
        parts += [
            stream.compress(constants),
            stream.flush(zlib.Z_BLOCK),
            stream.compress(codes.astype(f"<u{width}").tobytes()),
            stream.flush(zlib.Z_BLOCK),
        ]
    return b"".join([*parts, stream.flush()])


def inflate_arrays(data: bytes, layouts: Sequence[Layout]) -> bytes:
    """The arrays as format version 1 stores them, from a stream of `deflate_arrays`.

    Raises:
        PackedFileError: the stream is invalid, of another length, or holds a code of too many bits.
    """
    num_bytes = sum(map(symbol_bytes, layouts))
    symbols = _inflate(data, num_bytes, "data")
    if len(symbols) != num_bytes:
        raise PackedFileError(f"its data does not inflate to {num_bytes} bytes")
    parts, start = [], 0
    for layout in layouts:
        stop = start + symbol_bytes(layout)
        parts.append(_join(symbols[start:stop], layout))
        start = stop
    return b"".join(parts)


def deflate_text(text: bytes) -> bytes:
    """A raw stream of JSON."""
    stream = zlib.compressobj(9, zlib.DEFLATED, _RAW, 9)
    return stream.compress(text) + stream.flush()


def inflate_text(data: bytes, max_bytes: int) -> bytes:
    """The inverse of `deflate_text`.

    Raises:
        PackedFileError: the stream is invalid or inflates to more than `max_bytes` bytes.
    """
    return _inflate(data, max_bytes, "index")


def _inflate(data: bytes, max_bytes: int, what: str) -> bytes:
    """The content of one whole raw stream."""
    stream = zlib.decompressobj(_RAW)
    try:
        content = stream.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise PackedFileError(f"its {what} cannot be inflated: {error}") from None
    if len(content) > max_bytes:
        raise PackedFileError(f"its {what} inflates to more than {max_bytes} bytes")
    if not stream.eof or stream.unused_data:
        raise PackedFileError(f"its {what} does not end with its stream")
    return content


def _join(symbols: bytes, layout: Layout) -> bytes:
    """Constants and bit-packed codes of an array."""
    path, _, scheme, bits = layout
    if bits is None:
        return symbols
    middle = 4 * num_constants(scheme)
    codes = np.frombuffer(symbols, f"<u{_entry_bytes(scheme, bits)}", offset=middle)
    if codes.max() >> bits:
        raise PackedFileError(f"it has codes of more than {bits} bits in {'/'.join(path)!r:.60}")
    return symbols[:middle] + join_codes(codes, bits).tobytes()


def _entry_bytes(scheme: str, bits: int | None) -> int:
    return PLAIN_BYTES[scheme] if bits is None else 1 if bits <= 8 else 2
