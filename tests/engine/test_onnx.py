"""ONNX models give the predictor's logits, at any batch size, from integer codes."""

import json
from unittest import mock

import numpy as np
import pytest

from mlg_jax import GenerationSpec, load_packed, save_packed
from mlg_jax.engine import UnsupportedOperationError, _onnx_operations, export_onnx
from mlg_jax.engine._onnx_graph import Codes, Graph, Value
from mlg_jax.export import read_packed
from mlg_jax.quant import QuantSpec

from . import _trained

onnx = pytest.importorskip("onnx", reason="needs mlg-jax[onnx]")
onnxruntime = pytest.importorskip("onnxruntime")


def run(data, images):
    return onnxruntime.InferenceSession(data).run(None, {"images": images})[0]


def pixels(num, size=_trained.SIZE):
    return np.random.default_rng(num).integers(0, 256, (num, size, size, 3), np.uint8)


def check_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.fixture(scope="module")
def exported(path):
    return export_onnx(read_packed(path))


def test_pixels_to_logits_at_two_batch_sizes(path, exported):
    predictor = load_packed(path, batch_sizes=(4,))
    for num in (1, 3):
        check_close(run(exported, pixels(num)), predictor(pixels(num)))


def test_the_reference_implementation_agrees(path, exported):
    from onnx.reference import ReferenceEvaluator

    (found,) = ReferenceEvaluator(onnx.load_from_string(exported)).run(None, {"images": pixels(2)})
    check_close(found, load_packed(path)(pixels(2)))


@pytest.mark.parametrize("implementation", ["generate", "factored_out", "factored"])
def test_normalised_images_with_channels_first(path, implementation):
    data = export_onnx(
        read_packed(path), images="float32", layout="NCHW", implementation=implementation
    )
    images = _trained.images(2)
    found = run(data, np.ascontiguousarray(np.moveaxis(images, 3, 1)))
    check_close(found, load_packed(path)(images))


def test_weights_are_codes_and_kernels_are_absent(path):
    data = export_onnx(read_packed(path), implementation="factored")
    graph = onnx.load_from_string(data).graph
    sizes = {a.name: np.prod(a.dims) for a in graph.initializer}
    types = {a.name: a.data_type for a in graph.initializer}
    codes = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    narrow = {onnx.TensorProto.UINT4, onnx.TensorProto.UINT8, onnx.TensorProto.UINT16}
    assert {types[name] for name in codes} <= narrow
    assert onnx.TensorProto.UINT4 in {types[name] for name in codes}
    assert max(size for name, size in sizes.items() if name not in codes) <= 128
    assert 9 * 32 * 32 not in sizes.values()


def test_metadata_and_input(path, exported):
    model = onnx.load_from_string(exported)
    manifest = json.loads({p.key: p.value for p in model.metadata_props}["mlg_jax"])
    assert manifest == read_packed(path).manifest
    (image,) = model.graph.input
    dims = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
    assert dims == ["b", _trained.SIZE, _trained.SIZE, 3]


@pytest.mark.parametrize(
    "name",
    [
        "squeezenet",
        "cifar_cnn",
        pytest.param("mobilenet_v2", marks=pytest.mark.slow),
        pytest.param("alexnet", marks=pytest.mark.slow),
    ],
)
def test_other_networks(name, tmp_path):
    options = {"width": 0.25} if name != "alexnet" else {"width": 0.05}
    model, variables = _trained.trained(name, size=32, activation_bits=None, **options)
    save_packed(tmp_path / "model.mlg", model, variables)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    data = export_onnx(read_packed(tmp_path / "model.mlg"))
    check_close(run(data, images), load_packed(tmp_path / "model.mlg")(images))


@pytest.mark.parametrize("scheme, bits", [("qnn", 5), ("dorefa_sym", 1)])
def test_other_quantisers(scheme, bits, tmp_path):
    narrow, wide = QuantSpec(bits, scheme), QuantSpec(12, scheme)
    generation = GenerationSpec(2, 6, narrow, wide, narrow)
    model, variables = _trained.trained(generation=generation, activation_bits=None)
    preprocessing = _trained.PREPROCESSING
    save_packed(tmp_path / "model.mlg", model, variables, preprocessing=preprocessing)
    images = _trained.images(2)
    data = export_onnx(read_packed(tmp_path / "model.mlg"), images="float32")
    check_close(run(data, images), load_packed(tmp_path / "model.mlg")(images))


@pytest.mark.parametrize(
    "codes, scale, offset, dtype, has_sum",
    [
        ([0, 7], 2 / 7, -1.0, "UINT4", False),  # doubled codes have the zero point 7
        ([0, 15], 2 / 15, -1.0, "UINT4", True),  # doubled codes would need 5 bits
        ([0, 63], 2 / 63, -1.0, "UINT8", False),
        ([0, 255], 0.5, -8.0, "UINT8", False),
        ([3, 1000], 0.5, 0.25, "UINT16", True),
    ],
)
def test_codes_keep_their_width(codes, scale, offset, dtype, has_sum):
    graph = Graph(onnx)
    value = Value((2,), codes=Codes(np.asarray(codes, np.uint16), scale, offset))
    output = graph.name_of(value)
    described = onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [2])
    model = graph.model([], [described])
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})[0]
    np.testing.assert_allclose(found, np.asarray(codes) * scale + offset, rtol=1e-5, atol=1e-6)
    assert [node.op_type for node in graph.nodes] == ["DequantizeLinear", "Add"][: 1 + has_sum]
    assert getattr(onnx.TensorProto, dtype) in {array.data_type for array in graph.arrays}


@pytest.mark.bad_input
def test_bad_input(path, tmp_path):
    packed = read_packed(path)
    with pytest.raises(ValueError, match="`layout` must be one of .*got 'CHWN'"):
        export_onnx(packed, layout="CHWN")
    with pytest.raises(ValueError, match="`images` must be one of .*got 'int8'"):
        export_onnx(packed, images="int8")
    with mock.patch.dict(_onnx_operations.OPERATIONS):
        del _onnx_operations.OPERATIONS["conv_general_dilated"]
        with pytest.raises(UnsupportedOperationError, match="operation 'conv_general_dilated'"):
            export_onnx(packed)
    with mock.patch.dict("sys.modules", onnx=None):
        with pytest.raises(ImportError, match=r"pip install mlg-jax\[onnx\]"):
            export_onnx(packed)
    model, variables = _trained.trained()
    save_packed(tmp_path / "bare.mlg", model, variables)
    with pytest.raises(TypeError, match="`images` must be 'float32', as the file has no preproc"):
        export_onnx(read_packed(tmp_path / "bare.mlg"), images="uint8")
