"""Packed files: deterministic, readable by safetensors, atomic, and validated."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from mlg_jax.export import PackedFileError, PackedModel, read_packed, write_packed
from mlg_jax.export._archive import DEFLATED, PLAIN, to_bytes
from mlg_jax.export._bitstream import split_codes
from mlg_jax.export._deflate import deflate_text, inflate_text
from tests.export._examples import blob_of, container_of, example, same, skewed

CONTENT = to_bytes(example())
BLOB = blob_of(CONTENT)
INDEX_BYTES = int.from_bytes(BLOB[:4], "little")
INDEX, DATA = json.loads(BLOB[4 : 4 + INDEX_BYTES]), BLOB[4 + INDEX_BYTES :]
NUM_ENCODINGS = len(INDEX["encodings"])
SMALL = PackedModel(tuple(t for t in skewed().tensors if t.bits in (3, 11)), {"n": 1})
DEFLATED_BLOB = blob_of(to_bytes(SMALL))
DEFLATED_INDEX_BYTES = int.from_bytes(DEFLATED_BLOB[:4], "little")
DEFLATED_INDEX = DEFLATED_BLOB[4 : 4 + DEFLATED_INDEX_BYTES]
DEFLATED_DATA = DEFLATED_BLOB[4 + DEFLATED_INDEX_BYTES :]


def test_a_file_is_read_back(tmp_path):
    num_bytes = write_packed(tmp_path / "model", example())
    assert num_bytes == (tmp_path / "model").stat().st_size
    read = read_packed(str(tmp_path / "model"))
    assert same(read, example()) and read.manifest == example().manifest
    for one, other in zip(read.tensors, example().tensors, strict=True):
        assert (one.path, one.shape, one.scheme, one.bits) == (
            (other.path, other.shape, other.scheme, other.bits)
        )
        assert np.array_equal(one.data, other.data)
        assert np.array_equal(one.constants, other.constants)


def test_equal_models_give_equal_bytes():
    manifest = dict(reversed(example().manifest.items()))
    assert to_bytes(PackedModel(example().tensors[::-1], manifest)) == CONTENT


@pytest.mark.parametrize("version", [PLAIN, DEFLATED])
def test_the_formats_do_not_drift(version):
    """Existing files must stay readable: any change of the bytes needs a new format version."""
    path = pathlib.Path(__file__).parent / f"version_{version}.safetensors"
    read = read_packed(path)
    assert to_bytes(read, PLAIN) == to_bytes(SMALL if version == DEFLATED else example(), PLAIN)
    if version == PLAIN:  # implementations of DEFLATE may choose other streams for equal content
        assert to_bytes(read, PLAIN) == path.read_bytes()


def test_frequent_codes_take_few_bits(tmp_path):
    """The file is within 5 % of the entropy of its codes, array by array."""
    num_bytes = write_packed(tmp_path / "model", skewed())
    read = read_packed(tmp_path / "model")
    assert same(read, skewed())
    entropy = 0.0
    for tensor in read.tensors:
        if tensor.bits is not None and tensor.bits <= 8:
            codes = split_codes(tensor.data, tensor.bits, tensor.size)
            share = np.unique(codes, return_counts=True)[1] / codes.size
            entropy += float(-np.sum(share * np.log2(share))) * codes.size / 8
    narrow = [t for t in skewed().tensors if t.bits is None or t.bits <= 8]
    num_bytes = write_packed(tmp_path / "narrow", PackedModel(tuple(narrow), {}))
    # No code is shorter than one bit, which is more than the entropy of what is nearly constant.
    at_least = sum(t.size / 8 for t in narrow if t.bits is not None)
    assert max(entropy, at_least) < num_bytes < 1.2 * entropy + at_least
    assert num_bytes < 0.5 * len(to_bytes(PackedModel(tuple(narrow), {}), PLAIN))


def test_uniform_codes_stay_as_they_are(tmp_path):
    assert to_bytes(example()) == to_bytes(example(), PLAIN)


def test_the_safetensors_library_reads_it(tmp_path):
    write_packed(tmp_path / "model", example())
    arrays = safetensors.numpy.load_file(tmp_path / "model")
    assert list(arrays) == ["packed"] and arrays["packed"].tobytes() == BLOB
    with safetensors.safe_open(tmp_path / "model", "numpy") as file:
        assert file.metadata() == {
            "format": "mlg_jax packed model",
            "format_version": "1",
            "sha256": hashlib.sha256(BLOB).hexdigest(),
        }


def test_other_readers_may_order_and_space_json_differently(tmp_path):
    tree = dict(reversed(INDEX["tensors"].items()))
    index = json.dumps({"tensors": tree, **INDEX} | {"tensors": tree}, indent=1).encode()
    blob = len(index).to_bytes(4, "little") + index + DATA
    (tmp_path / "model").write_bytes(container_of(blob))
    assert same(read_packed(tmp_path / "model"), example())


def with_index(change):
    """A file with a modified index and a correct checksum."""
    index = json.loads(json.dumps(INDEX))
    change(index)
    return with_index_bytes(json.dumps(index).encode())


def with_index_bytes(index):
    return container_of(len(index).to_bytes(4, "little") + index + DATA)


def with_leaf(leaf):
    """A file with another index entry for its first array."""
    return with_index(lambda index: index["tensors"]["batch_stats"]["norm"].update(mean=leaf))


def with_encoding(encoding):
    return with_index(lambda index: index["encodings"].append(encoding))


def with_data(position, value):
    data = bytearray(DATA)
    data[position] = value
    return container_of(BLOB[: 4 + INDEX_BYTES] + bytes(data))


def with_tensor_data(value):
    """A file in which the last byte of the last array is `value`."""
    return container_of(BLOB[:-1] + bytes([value]))


def replaced(old, new):
    assert CONTENT.count(old) == 1
    return CONTENT.replace(old, new)


BAD_FILES = {
    "empty": (b"", "it ends within its length of 8 bytes"),
    "short": (CONTENT[:5], "it ends within its length"),
    "pickle": (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x8c\x02os", "its header has"),
    "zip": (b"PK\x03\x04" + bytes(50), "its header has"),
    "no header": (bytes(40), "its header is not valid JSON"),
    "header of 2^63 bytes": (b"\xff" * 7 + b"\x7f" + CONTENT[8:], "4096 are allowed"),
    "header beyond the file": (CONTENT[:100], "it ends within its header"),
    "header is a list": (b"\x02" + bytes(7) + b"[]", "its header is not a JSON object"),
    "other format": (replaced(b"mlg_jax packed", b"mlg_jix packed"), "does not name the format"),
    "next version": (
        replaced(b'version":"1"', b'version":"3"'),
        "its format version is '3'; this library reads '1' and '2'",
    ),
    "version 1 as version 2": (replaced(b'version":"1"', b'version":"2"'), "cannot be inflated"),
    "numeric version": (replaced(b'version":"1"', b'version":1  '), "its format version is 1;"),
    "ordinary safetensors": (safetensors.numpy.save({"a": np.ones(2)}), "not name the format"),
    "cut data": (CONTENT[:-1], "its header does not describe its"),
    "added data": (CONTENT + b"\0", "its header does not describe its"),
    "other checksum": (
        replaced(hashlib.sha256(BLOB).hexdigest().encode(), b"0" * 64),
        "its content does not match its checksum",
    ),
    "flipped data": (CONTENT[:-9] + bytes([CONTENT[-9] ^ 1]) + CONTENT[-8:], "its checksum"),
    "flipped manifest": (replaced(b'"accuracy":0.1', b'"accuracy":0.9'), "its checksum"),
    "index of 4 GiB": (container_of(b"\xff" * 4 + BLOB[4:]), "4194304 are allowed"),
    "index beyond the file": (container_of(b"\0\0\x40\0" + BLOB[4:]), "it ends within its index"),
    "no blob": (container_of(b""), "it ends within its index length"),
    "index is no UTF-8": (with_index_bytes(b'{"\xff":1}'), "its index is not valid JSON"),
    "index with NaN": (with_index_bytes(b'{"a":NaN}'), "its index is not valid JSON"),
    "index with a repeated key": (with_index_bytes(b'{"a":1,"a":1}'), "repeated key"),
    "deep manifest": (
        with_index_bytes(b'{"a":' + b"[" * 70 + b"]" * 70 + b"}"),
        "its index is not valid JSON .nested more than 64 deep",
    ),
    "deep index": (with_index_bytes(b"[" * 100_000), "its index is not valid JSON"),
    "huge integer": (
        with_index_bytes(b'{"a":' + b"9" * 9999 + b"}"),
        "its index is not valid JSON",
    ),
    "missing key": (with_index(lambda i: i.pop("manifest")), "the keys of its index are not"),
    "manifest is a list": (with_index(lambda i: i.update(manifest=[])), "two objects"),
    "many encodings": (with_index(lambda i: i.update(encodings=["bool"] * 257)), "257 encodings"),
    "unknown encoding": (with_encoding("dorefa_sim:3"), "encoding 'dorefa_sim:3'"),
    "17 bits": (with_encoding("qnn:17"), "encoding 'qnn:17'"),
    "1 bit of a scheme without": (with_encoding("qnn:1"), "encoding 'qnn:1'"),
    "unrounded scheme": (with_encoding("tanh_norm:3"), "encoding 'tanh_norm:3'"),
    "encoding is a list": (with_encoding([]), r"encoding \[\]"),
    "array is a number": (with_leaf(3), "no arrays at 'batch_stats/norm/mean'"),
    "array without encoding": (with_leaf([]), "other than 1 to 9 integers"),
    "array of 9 dimensions": (with_leaf([2] + [1] * 9), "other than 1 to 9 integers"),
    "size is a float": (with_leaf([2, 5.0]), "other than 1 to 9 integers"),
    "size is a bool": (with_leaf([2, True]), "other than 1 to 9 integers"),
    "negative encoding": (with_leaf([-1, 5]), "encoding -1 of"),
    "encoding there is not": (with_leaf([99, 5]), "encoding 99 of"),
    "encoding after the last": (with_leaf([NUM_ENCODINGS, 5]), f"encoding {NUM_ENCODINGS} of"),
    "negative size": (with_leaf([5, -5]), r"shape \[-5\]"),
    "two negative sizes": (with_leaf([5, -5, -1]), r"shape \[-5, -1\]"),
    "size zero": (with_leaf([5, 0]), r"shape \[0\]"),
    "huge shape": (with_leaf([5, 2**62, 2**62]), "with shape"),
    "large shape": (with_leaf([5, 2**40]), "its index describes 4398046"),
    "one entry more": (with_leaf([5, 6]), "its index describes"),
    "name that is a path": (with_index(lambda i: i["tensors"].update({"../a": [0]})), "'../a'"),
    "empty name": (with_index(lambda i: i["tensors"].update({"": [0]})), "name ''"),
    "spare bits": (with_tensor_data(0xFF), "invalid bytes in params/head/kernel"),
    "lowest spare bit": (  # four spare bits follow the twelve one-bit codes
        with_tensor_data(BLOB[-1] | 0x10),
        "invalid bytes in params/head/kernel",
    ),
    "flag of 2": (with_data(20, 2), "invalid bytes in batch_stats/norm/range/is_set"),
    "infinite constant": (
        container_of(BLOB.replace(example().tensors[3].constants.tobytes(), b"\0\0\x80\x7f")),
        "invalid bytes in params/conv/basis",
    ),
}


def deflated(index, data):
    """A deflated file of the given streams with a correct checksum."""
    return container_of(len(index).to_bytes(4, "little") + index + data, DEFLATED)


def deflated_with_index(change):
    index = json.loads(inflate_text(DEFLATED_INDEX, 2**22))
    change(index)
    return deflated(deflate_text(json.dumps(index).encode()), DEFLATED_DATA)


def large_code():
    """A file whose first code does not fit its bits."""
    symbols = bytearray(zlib.decompress(DEFLATED_DATA, -15))
    symbols[4] = 8  # after one constant, in three bits
    return deflated(DEFLATED_INDEX, deflate_text(bytes(symbols)))


BAD_FILES |= {
    "cut stream": (deflated(DEFLATED_INDEX, DEFLATED_DATA[:-1]), "its data does not end with"),
    "more than a stream": (deflated(DEFLATED_INDEX, DEFLATED_DATA + b"0"), "does not end with"),
    "no stream": (deflated(DEFLATED_INDEX, b"\xff" * len(DEFLATED_DATA)), "cannot be inflated"),
    "index without end": (deflated(DEFLATED_INDEX[:-1], DEFLATED_DATA), "its index does not end"),
    "inflated index of 4 MiB and a byte": (
        deflated(deflate_text(b" " * (2**22 + 1)), DEFLATED_DATA),
        "its index inflates to more than 4194304 bytes",
    ),
    "a bomb": (
        deflated_with_index(lambda i: i["tensors"]["params"].update(bomb=[0, 2**30])),
        "which cannot be deflated to",
    ),
    "stream longer than what it stands for": (
        deflated_with_index(lambda i: i["tensors"].pop("params")),
        "which cannot be deflated to",
    ),
    "shorter stream": (
        deflated_with_index(lambda i: i["tensors"]["params"].update(more=[0, 8])),
        "its data does not inflate to",
    ),
    "code of too many bits": (large_code(), "codes of more than 3 bits in 'params/conv/basis"),
}


def deep_tree():
    tree = [0, 5]
    for _ in range(40):
        tree = {"a": tree}
    return with_index(lambda index: index.update(tensors=tree))


BAD_FILES["deep tree"] = (deep_tree(), "no arrays at 'a/a/a")


@pytest.mark.bad_input
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_and_cost_nothing(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / "bad").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(PackedFileError, match=message) as error:
            read_packed(tmp_path / "bad")
        limit = 2**24 if "inflated index" in name else 2**20 + 20 * len(content)
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
    assert str(error.value).startswith(f"`path` must be a packed model; got {tmp_path / 'bad'}: ")
    assert len(str(error.value)) < 500


def with_header_of(num_bytes):
    header_bytes = int.from_bytes(CONTENT[:8], "little")
    header = CONTENT[8 : 8 + header_bytes].ljust(num_bytes)
    return num_bytes.to_bytes(8, "little") + header + BLOB


def with_index_of(num_bytes):
    return with_index_bytes(json.dumps(INDEX).encode().ljust(num_bytes))


@pytest.mark.bad_input
@pytest.mark.parametrize("make, limit", [(with_header_of, 2**12), (with_index_of, 2**22)])
def test_limits_are_allowed_and_one_byte_more_is_not(tmp_path, make, limit):
    (tmp_path / "model").write_bytes(make(limit))
    assert same(read_packed(tmp_path / "model"), example())
    (tmp_path / "model").write_bytes(make(limit + 1))
    message = rf"has {limit + 1} bytes; {limit} are allowed"
    with pytest.raises(PackedFileError, match=message):
        read_packed(tmp_path / "model")


@pytest.mark.bad_input
def test_every_truncation_is_found(tmp_path):
    content = to_bytes(SMALL)
    lengths = range(len(CONTENT)), range(0, len(content), 29)
    for cut in [CONTENT[:n] for n in lengths[0]] + [content[:n] for n in lengths[1]]:
        (tmp_path / "cut").write_bytes(cut)
        with pytest.raises(PackedFileError):
            read_packed(tmp_path / "cut")


@pytest.mark.bad_input
def test_a_sparse_file_of_a_terabyte_is_not_read(tmp_path):
    path, length = tmp_path / "sparse", 2**40
    header = container_of(BLOB)[: -len(BLOB)].replace(b"%d" % len(BLOB), b"%d" % length)
    header = (len(header) - 8).to_bytes(8, "little") + header[8:]
    path.write_bytes(header + BLOB)
    os.truncate(path, len(header) + length)
    with pytest.raises(PackedFileError, match="its index describes"):
        read_packed(path)


@pytest.mark.bad_input
def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", pathlib.Path(os.devnull)):
        with pytest.raises(PackedFileError, match="not a regular file"):
            read_packed(path)
    with pytest.raises(FileNotFoundError):
        read_packed(tmp_path / "nothing")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_an_interruption_leaves_the_old_file(tmp_path, monkeypatch, function):
    path = tmp_path / "model"
    write_packed(path, example())

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, function, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_packed(path, PackedModel(example().tensors[:1], {}))
    assert path.read_bytes() == CONTENT and list(tmp_path.iterdir()) == [path]


# Writers are forked after the imports, and killed while an incomplete file exists.
KILL = """
import os, signal, sys, time
from mlg_jax.export import PackedModel, read_packed, write_packed
from tests.export._examples import coded
directory, kills = sys.argv[1], int(sys.argv[2])
path = os.path.join(directory, "model")
models = [PackedModel((coded(("params", "a"), (n,), "qnn", 8),), {}) for n in (2**20, 2**19)]
write_packed(path, models[0])
while (found := len(os.listdir(directory))) <= kills:
    if (child := os.fork()) == 0:
        while True:
            for model in models:
                write_packed(path, model)
    while len(os.listdir(directory)) == found:
        pass
    time.sleep(0.0001 * (found % 10))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    read_packed(path)
"""


@pytest.mark.parametrize("kills", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_a_killed_writer_leaves_a_whole_file(tmp_path, kills):
    root = pathlib.Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", KILL, str(tmp_path), str(kills)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(list(tmp_path.glob(".model.*.tmp"))) == kills
    assert len(read_packed(tmp_path / "model").tensors) == 1
