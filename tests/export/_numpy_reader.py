"""A reader of packed files, written from docs/file_format.md with NumPy only."""

import hashlib
import json

import numpy as np


def read(path):
    """Reads the manifest and the arrays by path."""
    with open(path, "rb") as file:
        content = file.read()
    size = int.from_bytes(content[:8], "little")
    header, blob = json.loads(content[8 : 8 + size]), content[8 + size :]
    metadata = header["__metadata__"]
    assert metadata["format"] == "mlg_jax packed model" and metadata["format_version"] == "1"
    assert metadata["sha256"] == hashlib.sha256(blob).hexdigest()
    assert header["packed"] == {
        "dtype": "U8",
        "shape": [len(blob)],
        "data_offsets": [0, len(blob)],
    }
    end = 4 + int.from_bytes(blob[:4], "little")
    index, data = json.loads(blob[4:end]), memoryview(blob)[end:]
    arrays = {}
    for path, (encoding, *shape) in walk((), index["tensors"]):
        scheme, _, bits = index["encodings"][encoding].partition(":")
        count = int(np.prod(shape, dtype=object))
        if not bits:
            dtype = {"float32": "<f4", "bool": "?"}[scheme]
            values, used = np.frombuffer(data, dtype, count), count * np.dtype(dtype).itemsize
        else:
            start = 8 if scheme == "qnn" else 4
            used = start + (count * int(bits) + 7) // 8
            codes = unpack(np.frombuffer(data[start:used], np.uint8), int(bits), count)
            values = decode(scheme, int(bits), codes, np.frombuffer(data[:start], "<f4"))
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
