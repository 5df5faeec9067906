"""Files with state dicts: those of other libraries are read, invalid ones raise one error."""

import argparse
import io
import json
import pickle
import struct
import sys
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from mlg_jax.export import TorchFileError, read_torch, write_torch
from mlg_jax.export._torch_file import _from_safetensors

SUFFIXES_OF_PYTORCH = (".bin", ".ckpt", ".pt", ".pth", ".pth.tar")
ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bn.bias": np.array([0.5, -0.0, np.inf], np.float32),
    "scalar": np.array(3.0, np.float32),
    "none": np.zeros((0, 4), np.float32),
}
WRITTEN = safetensors.numpy.save(ARRAYS, {"format": "pt"})


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype and actual[name].shape == value.shape
        assert actual[name].tobytes() == value.tobytes(), name


def container(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


def test_what_is_written_is_read(tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path, names in zip(paths, (ARRAYS, reversed(ARRAYS)), strict=True):
        assert write_torch(path, {name: ARRAYS[name] for name in names}) == path.stat().st_size
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert_same(read_torch(paths[0]), ARRAYS)


def test_arrays_in_any_memory_order_are_written_in_c_order(tmp_path):
    base = np.arange(24, dtype=np.float64).reshape(4, 6)
    arrays = {"transposed": base.T, "strided": base[::2, ::-3], "other bytes": base.astype(">f4")}
    write_torch(tmp_path / "a.safetensors", arrays)
    expected = {name: np.array(value, "f4", order="C") for name, value in arrays.items()}
    assert_same(read_torch(tmp_path / "a.safetensors"), expected)


def test_every_type_that_pytorch_networks_use(tmp_path):
    arrays = {
        kind: np.array([[1, 0], [3, 4]]).astype(kind)
        for kind in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?")
    }
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"epoch": "3"})
    assert_same(read_torch(path), arrays)


def test_bfloat16_becomes_float32(tmp_path):
    values = jnp.array([1.5, -2.0, 3e38], jnp.bfloat16)
    path = tmp_path / "a.safetensors"
    path.write_bytes(container(entry("BF16", (3,), (0, 6)), np.asarray(values).tobytes()))
    assert_same(read_torch(path), {"a": np.asarray(values, np.float32)})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "a header of 0 bytes in a file of 0"),
        (struct.pack("<Q", 2**63) + b"{}", "a header of 9223372036854775808 bytes in a file of 10"),
        (container(b" " * 2**25), "a header of 33554432 bytes in a file of 33554440"),
        (container(b"{"), "its header is not valid JSON"),
        (container(b"[" * 100_000), "its header is not valid JSON"),
        (container(b"\xff"), "its header is not valid JSON"),
        (container([]), "its header is not a JSON object"),
        (container(b'{"a":1,"a":2}'), "its header is not valid JSON .a repeated key"),
        (
            container(b'{"a":' + b"[" * 100 + b"]" * 100 + b"}"),
            "its header is not valid JSON .nested more than 64 deep",
        ),
        (container({"a": 1}), "safetensors refuses it .*integer `1`"),
        (container({"\x1b[1m": 1}), "safetensors refuses it .*integer `1`"),
        (container({"a": [[]]}), "safetensors refuses it .*sequence"),
        (container(entry("F8_E4M3", (8,)), bytes(8)), "'a' is of dtype F8_E4M3"),
        (
            container({"\x1b[1m": entry("F8_E4M3", (8,))["a"]}, bytes(8)),
            r"'\\\\x1b\[1m' is of dtype F8_E4M3",
        ),
        (container(entry(shape=(-2,)), bytes(8)), "safetensors refuses it .*integer `-2`"),
        (container(entry(shape=(2.0,)), bytes(8)), "safetensors refuses it .*floating point `2.0`"),
        (container(entry(shape=(True,), offsets=(0, 4)), bytes(8)), ".*boolean `true`"),
        (container(entry(shape=(2**62, 2**62)), bytes(8)), "safetensors refuses it .*overflow"),
        (container(entry(shape=(0, 10**30), offsets=(0, 0))), "safetensors refuses it"),
        (container(entry(shape=(0, 2**31, 2**31), offsets=(0, 0))), "'a' is of shape .0, 2147483"),
        (container(entry(shape=(0,) * 99, offsets=(0, 0))), "'a' is of shape .0, 0, 0"),
        (container(entry(shape=(0,) * 99, offsets=(0, 0)), bytes(8)), "safetensors refuses it"),
        (container(entry(offsets=(0, 4)), bytes(8)), "safetensors refuses it"),
        (container(entry(offsets=(8, 16)), bytes(8)), "safetensors refuses it"),
        (container(entry(offsets=(8, 0)), bytes(8)), "safetensors refuses it"),
        (container(entry(), bytes(9)), "safetensors refuses it"),
        (container({n: entry()["a"] for n in "ab"}, bytes(8)), "safetensors refuses it"),
    ],
)
def test_damaged_safetensors(tmp_path, data, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(TorchFileError, match=rf"`path` must hold a state dict; got .*: {message}"):
        read_torch(path)


@given(st.data())
def test_changed_safetensors_are_read_or_refused(data):
    """A flipped byte may change a number; everything else must end in one kind of error."""
    whole = bytearray(WRITTEN)
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    stop = data.draw(st.integers(0, len(whole)) | st.just(len(whole)))
    try:
        arrays = _from_safetensors(bytes(whole[:stop]))
    except TorchFileError:
        return
    assert sum(array.nbytes for array in arrays.values()) <= stop


@pytest.mark.bad_input
def test_suffixes(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end in one of \['.bin', .*; got .*a.npz"):
        read_torch(tmp_path / "a.npz")
    with pytest.raises(
        ValueError, match=r"`path suffix` must be one of \['.safetensors'\]; got '.pth'"
    ):
        write_torch(tmp_path / "a.pth", ARRAYS)
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "a.safetensors")


def archive(entries, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as writer:
        for name, content in entries:
            writer.writestr(name, content)
    return file.getvalue()


PARTS = [("a/data.pkl", pickle.dumps({}, 2)), ("a/version", b"3\n"), ("a/data/0", bytes(64))]
CENTRAL = b"PK\x01\x02"  # start of a directory entry; the sizes follow at offsets 20 and 24


def with_sizes(data, compressed, uncompressed):
    """An archive with other sizes of its first entry in the zip directory."""
    at = data.index(CENTRAL)
    return data[: at + 20] + struct.pack("<II", compressed, uncompressed) + data[at + 28 :]


def encrypted(data):
    at = data.index(CENTRAL) + 8
    return data[:at] + b"\x01" + data[at + 1 :]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "not a zip archive"),
        (pickle.dumps(ARRAYS), "not a zip archive, as written by PyTorch 1.6"),
        (archive(PARTS)[:-30], "not a zip archive"),
        (
            archive([*PARTS, ("a/data/1", bytes(10_000_000))], zipfile.ZIP_DEFLATED),
            "its entry 'a/data.pkl' is compressed or encrypted",
        ),
        (with_sizes(archive(PARTS), 40, 2**31), "its entry 'a/data.pkl' is compressed"),
        (
            with_sizes(archive(PARTS), 2**31, 2**31),
            r"entries of 2147483\d+ bytes in a file of \d+\.",
        ),
        (encrypted(archive(PARTS)), "its entry 'a/data.pkl' is compressed or encrypted"),
    ],
)
def test_archives_are_refused_before_pytorch_sees_them(tmp_path, monkeypatch, data, message):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would raise another error
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    with pytest.raises(TorchFileError, match=rf"got .*a\.pth: {message}"):
        read_torch(path)


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_two_entries_of_one_name(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(archive([*PARTS, PARTS[0]]))
    with pytest.raises(TorchFileError, match="two of its entries have the same name"):
        read_torch(path)


@pytest.mark.bad_input
def test_pytorch_must_be_there_and_new(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    path.write_bytes(archive(PARTS))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"needs PyTorch, `pip install mlg-jax\[torch\]`"):
        read_torch(path)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__="2.9.1+cpu"))
    with pytest.raises(ImportError, match=r"PyTorch must be 2.10 or later .*; got 2.9.1\+cpu"):
        read_torch(path)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_what_pytorch_writes(tmp_path, torch):
    state = {"a": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor(5)}
    expected = {k: v.numpy() for k, v in state.items()}
    state["half"] = torch.nn.Parameter(torch.tensor([1.5], dtype=torch.bfloat16))
    expected["half"] = np.array([1.5], np.float32)
    averaged = {k: v + 1 for k, v in state.items()}
    for number, whole in enumerate(
        (
            state,
            {"model": None, "state_dict": state, "epoch": 3},
            {"net": state, "lr": 0.1, "names": ["a"]},
            {"model": state, "model_ema": averaged, "optimizer": {"state": {}}},
            {"ema": {"state_dict": {"module": state}}},
        )
    ):
        path = tmp_path / f"a{SUFFIXES_OF_PYTORCH[number % len(SUFFIXES_OF_PYTORCH)]}"
        torch.save(whole, path)
        found = read_torch(path)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


@pytest.mark.bad_input
def test_a_mapping_that_holds_itself(tmp_path, torch):
    whole = {"epoch": 3}
    whole["state_dict"] = whole
    torch.save(whole, tmp_path / "a.ckpt")
    with pytest.raises(TorchFileError, match="'epoch' must be a dense tensor on the CPU; got int"):
        read_torch(tmp_path / "a.ckpt")


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda torch: Malicious(), "it holds objects of builtins.print, which are not loaded"),
        (
            lambda torch: torch.nn.Linear(2, 2),
            r"it holds objects of .*torch.nn.modules.linear.Linear.*, which are not loaded .*; "
            r"save the state dict alone: torch.save\(model.state_dict\(\), path\)",
        ),
        (
            lambda torch: {"a": torch.ones(2), "b": argparse.Namespace()},
            "it holds objects of argparse.Namespace,",
        ),
        (lambda torch: {"a": bytearray(9)}, "it creates a bytearray, which can have any size"),
        (lambda torch: {"\x1b[1m": 1}, r"'\\\\x1b\[1m' must be a dense tensor"),
        (lambda torch: [1, 2], "a list"),
        (
            lambda torch: {"a": 3},
            "'a' must be a dense tensor on the CPU; got int .state dicts are searched for under st",
        ),
        (lambda torch: {3: torch.ones(2)}, "the int key must be a dense tensor"),
        (lambda torch: {"a": torch.ones(2).to_sparse()}, "'a' must be a dense tensor on the CPU"),
        (
            lambda torch: {"a": torch.ones(2, device="meta")},
            "'a' must be a dense tensor on the CPU",
        ),
        (lambda torch: {"a": torch.ones(2, dtype=torch.complex64)}, "a tensor of complex64"),
        (
            lambda torch: {"a": torch.ones(1).expand(2**40)},
            r"tensors of 4398046511104 bytes in a file of \d+",
        ),
        (
            lambda torch: dict.fromkeys(map(str, range(999)), torch.ones(1000)),
            r"tensors of 3996000 bytes in a file of \d+",
        ),
    ],
)
def test_what_is_no_state_dict(tmp_path, torch, capsys, make, message):
    torch.save(make(torch), tmp_path / "a.pth")
    with pytest.raises(TorchFileError, match=rf"`path` must hold a state dict; got .*: {message}"):
        read_torch(tmp_path / "a.pth")
    assert "executed" not in capsys.readouterr().out


def test_changed_archives_are_read_or_refused(tmp_path, torch):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.arange(6.0), "b": torch.ones(2, 2)}, path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(0, 256)
        path.write_bytes(data[: rng.choice([len(data), rng.integers(0, len(data))], p=[0.9, 0.1])])
        try:
            arrays = read_torch(path)
        except TorchFileError:
            continue
        assert sum(array.nbytes for array in arrays.values()) <= len(data)
