"""A reader of packed files, written from docs/file_format.md with NumPy only."""

import hashlib
import json
import pathlib
import zlib

import numpy as np


def read(path):
    """Reads the manifest and the arrays by path."""
    content = pathlib.Path(path).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, blob = json.loads(content[8 : 8 + size]), content[8 + size :]
    metadata, is_deflated = header["__metadata__"], header["__metadata__"]["format_version"] == "2"
    assert metadata["format"] == "mlg_jax packed model" and metadata["format_version"] in "12"
    assert metadata["sha256"] == hashlib.sha256(blob).hexdigest()
    end = 4 + int.from_bytes(blob[:4], "little")
    stored, arrays = [blob[4:end], blob[end:]], {}
    if is_deflated:
        stored = [zlib.decompress(part, -15) for part in stored]
    index, data = json.loads(stored[0]), memoryview(stored[1])
    for path, (encoding, *shape) in walk((), index["tensors"]):
        scheme, _, bits = index["encodings"][encoding].partition(":")
        count = int(np.prod(shape, dtype=object))
        if not bits:
            dtype = np.dtype({"float32": "<f4", "float16": "<f2", "bool": "?"}[scheme])
            values = np.frombuffer(data, dtype, count).astype("?" if scheme == "bool" else "<f4")
            used = count * dtype.itemsize
        else:
            start, bits = 8 if scheme == "qnn" else 4, int(bits)
            width = (8 if bits <= 8 else 16) if is_deflated else bits
            used = start + (count * width + 7) // 8
            codes = unpack(np.frombuffer(data[start:used], np.uint8), width, count)
            values = decode(scheme, bits, codes, np.frombuffer(data[:start], "<f4"))
        arrays[path], data = values.reshape(shape), data[used:]
    assert len(data) == 0
    return index["manifest"], arrays


def walk(path, node):
    if isinstance(node, list):
        return [(path, node)]
    return [leaf for name in sorted(node) for leaf in walk((*path, name), node[name])]


def unpack(data, bits, count):
    first = np.arange(count) * bits
    data = np.append(data, [0, 0]).astype(np.uint32)  # a code spans up to three bytes
    words = sum(data[first // 8 + k] << (8 * k) for k in range(3))
    return (words >> (first % 8)) & (2**bits - 1)


def decode(scheme, bits, codes, constants):
    q, low, high = np.float32(codes) * np.float32(1 / (2**bits - 1)), constants[0], constants[-1]
    if scheme == "dorefa" and bits == 1:
        return q * low
    shift = {"dorefa_sym": low * (2 * q - 1), "dorefa_pos": q * (2 * low)}
    return shift.get(scheme, q * (high - low) + low if scheme == "qnn" else q)
