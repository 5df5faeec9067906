"""An independent reader of docs/file_format.md in NumPy reads the files of this library."""

import ast
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from flax import traverse_util

from mlg_jax import GenerationSpec, create_model, size_report
from mlg_jax.export import PackedModel, pack_variables, read_packed, unpack_variables, write_packed
from mlg_jax.export._archive import PLAIN, to_bytes
from mlg_jax.export._tensor import pack_plain
from mlg_jax.layers import layer_records
from tests._models import variable_shapes
from tests.export import _numpy_reader
from tests.export._examples import CASES, coded, example, same, skewed

READER = pathlib.Path(_numpy_reader.__file__)
NAMES = st.text("abcXYZ019_", min_size=1, max_size=5)
SHAPES = st.lists(st.integers(1, 5), max_size=3).map(tuple)


def assert_reads_the_same(path, packed):
    manifest, arrays = _numpy_reader.read(path)
    expected = traverse_util.flatten_dict(unpack_variables(packed))
    assert manifest == packed.manifest and list(arrays) == sorted(expected)
    for name, value in expected.items():
        assert arrays[name].shape == value.shape and arrays[name].dtype == value.dtype
        assert arrays[name].tobytes() == value.tobytes(), name


def test_the_reader_is_short_and_independent():
    tree = ast.parse(READER.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {alias.name for node in imports for alias in node.names} == {
        "hashlib",
        "json",
        "numpy",
        "pathlib",
        "zlib",
    }
    assert len(READER.read_text().splitlines()) <= 60


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_file_of_each_version(version):
    path = READER.with_name(f"version_{version}.safetensors")
    assert f'"format_version":"{version}"'.encode() in path.read_bytes()
    assert_reads_the_same(path, read_packed(path))


def test_every_encoding_deflated(tmp_path):
    write_packed(tmp_path / "model", skewed())
    assert b'"format_version":"2"' in (tmp_path / "model").read_bytes()
    assert_reads_the_same(tmp_path / "model", skewed())


def test_every_encoding(tmp_path):
    tensors = [coded(("params", f"{s}{b}"), (3, 7), s, b, seed=b) for s, b in CASES]
    packed = PackedModel((*example().tensors, *tensors), {"n": 1})
    write_packed(tmp_path / "model", packed)
    assert_reads_the_same(tmp_path / "model", packed)


@hypothesis.given(
    st.dictionaries(NAMES, st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(CASES)))),
    st.dictionaries(st.text(), st.none() | st.booleans() | st.floats(allow_nan=False) | st.text()),
)
def test_any_model_is_read_back(tmp_path_factory, modules, manifest):
    tensors = [pack_plain(("norm", "mean"), np.float32([1.5, -0.0]))]
    for module, entries in modules.items():
        for name, (shape, (scheme, bits)) in entries.items():
            tensors.append(coded(("params", module, name), shape, scheme, bits, len(tensors)))
    hypothesis.assume(all(abs(v) < np.inf for v in manifest.values() if isinstance(v, float)))
    path = tmp_path_factory.getbasetemp() / "any"
    num_bytes = write_packed(path, packed := PackedModel(tuple(tensors), manifest))
    assert path.stat().st_size == num_bytes and same(read_packed(path), packed)
    assert_reads_the_same(path, packed)


def test_resnet18_of_the_paper_takes_405_kb(tmp_path):
    model = create_model(
        "resnet18",
        num_classes=10,
        generation=GenerationSpec.from_bits(2, 44, 3, 6, 3),
        weight_bits=8,
    )
    rng, shapes = np.random.default_rng(0), variable_shapes(model)
    variables = jax.tree.map(lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), shapes)
    manifest = {"class_names": [f"class {k}" for k in range(10)], "model": {"name": "resnet18"}}
    packed = pack_variables(layer_records(model), variables, manifest)
    num_bytes = write_packed(tmp_path / "model", packed)
    statistics = 4 * sum(s.size for s in jax.tree.leaves(shapes["batch_stats"]))
    payload = size_report(model, variables).kb * 1024 + statistics
    assert 350.0 * 1024 + 37.5 * 1024 == payload
    assert payload < len(to_bytes(packed, PLAIN)) <= 405_000
    assert num_bytes <= 335_000
    assert_reads_the_same(tmp_path / "model", read_packed(tmp_path / "model"))
