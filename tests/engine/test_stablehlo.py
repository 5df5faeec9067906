"""Artefacts give the predictor's logits at any batch size, for both platforms."""

import dataclasses
import re
from unittest import mock

import jax
import numpy as np
import pytest

from mlg_jax import load_packed
from mlg_jax.engine import PLATFORMS, _stablehlo, export_stablehlo
from mlg_jax.export import read_packed, unpack_variables
from mlg_jax.layers import layer_records

from . import _trained

pytest.importorskip("flatbuffers", reason="needs mlg-jax[export]")


def called(data, *arguments):
    exported = jax.export.deserialize(bytearray(data))
    return np.asarray(jax.jit(exported.call)(*arguments)), exported


@pytest.fixture(scope="module")
def predictor(path):
    return load_packed(path, implementation="factored", batch_sizes=(2, 3))


@pytest.fixture(scope="module")
def artefact(path):
    return export_stablehlo(read_packed(path), implementation="factored")


def test_logits_at_two_batch_sizes(predictor, artefact):
    for num in (2, 3):
        images = _trained.images(num)
        logits, exported = called(artefact, images)
        np.testing.assert_array_equal(logits, predictor(images))
    assert exported.platforms == PLATFORMS
    calls = set(re.findall(r"custom_call @([\w.]+)", exported.mlir_module()))
    assert calls <= {"shape_assertion"}  # no platform-specific custom calls


def test_kernels_are_built_where_asked_for(path, predictor, artefact):
    built = export_stablehlo(read_packed(path), implementation="generate", platforms=("cpu",))
    logits, exported = called(built, _trained.images(2))
    np.testing.assert_allclose(logits, predictor(_trained.images(2)), rtol=1e-4, atol=1e-5)
    kernel = "3x3x32x32xf32"
    assert kernel in exported.mlir_module()
    assert kernel not in jax.export.deserialize(bytearray(artefact)).mlir_module()


def test_auto_chooses_for_the_batch_size(path):
    images = _trained.images(1)
    logits, _ = called(export_stablehlo(read_packed(path), platforms=("cpu",)), images)
    np.testing.assert_array_equal(logits, load_packed(path, batch_sizes=(1,))(images))
    with mock.patch.object(_stablehlo, "layer_records", wraps=layer_records) as records:
        export_stablehlo(read_packed(path), batch_size=32, platforms=("cpu",))
    assert records.call_args.args[1] == (32, *images.shape[1:])


def test_weights_stay_packed(path, predictor):
    data = export_stablehlo(
        read_packed(path), residency="packed", implementation="factored", platforms=("cpu",)
    )
    logits, exported = called(data, _trained.images(2))
    np.testing.assert_array_equal(logits, predictor(_trained.images(2)))
    assert exported.platforms == ("cpu",) and "ui8" in exported.mlir_module()


def test_pixels_are_preprocessed_inside(path, predictor):
    data = export_stablehlo(
        read_packed(path), images="uint8", implementation="factored", platforms=("cpu",)
    )
    logits, _ = called(data, _trained.pixels(2))
    np.testing.assert_array_equal(logits, predictor(_trained.pixels(2)))


def test_weights_may_be_arguments(path, predictor, artefact):
    packed, images = read_packed(path), _trained.images(2)
    small = export_stablehlo(
        packed, weights="arguments", implementation="factored", platforms=("cpu",)
    )
    assert len(small) < len(artefact)
    arrays = jax.tree.leaves(unpack_variables(packed))
    logits, exported = called(small, arrays, images)
    np.testing.assert_array_equal(logits, predictor(images))
    assert [a.shape for a in exported.in_avals[:-1]] == [a.shape for a in arrays]


def test_norms_can_be_folded(path, artefact):
    folded = export_stablehlo(read_packed(path), fold=True)
    programs = [
        jax.export.deserialize(bytearray(data)).mlir_module() for data in (artefact, folded)
    ]
    assert ["rsqrt" in program for program in programs] == [True, False]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options, message",
    [
        ({"images": "float16"}, r"`images` must be one of \['float32', 'uint8'\]; got 'float16'"),
        ({"weights": "none"}, r"`weights` must be one of \['arguments', 'constants'\]; got 'none'"),
        ({"platforms": ("tpu",)}, r"`platforms` must be one of \['cpu', 'cuda'\]; got 'tpu'"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1; got 0"),
        ({"implementation": "fast"}, r"`implementation` must be one of .*; got 'fast'"),
        ({"platforms": ()}, r"`platforms` must be some of \['cpu', 'cuda'\]; got none"),
        ({"images": "uint8"}, "`images` must be 'float32', as the file has no preprocessing"),
    ],
)
def test_bad_options(path, options, message):
    packed = read_packed(path)
    bare = dataclasses.replace(packed, manifest={**packed.manifest, "preprocessing": None})
    with pytest.raises(ValueError, match=message):
        export_stablehlo(bare, **options)


@pytest.mark.bad_input
def test_only_packed_models():
    with pytest.raises(TypeError, match="`packed` must be PackedModel; got 3"):
        export_stablehlo(3)
