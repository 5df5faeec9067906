"""Predictors reproduce the trained model bit for bit, under every residency of the weights."""

import copy
import dataclasses
import functools
import math
from unittest import mock

import jax
import numpy as np
import pytest

from mlg_jax import create_model, load_packed, save_packed
from mlg_jax.engine import (
    RESIDENCIES,
    ImagePreprocessing,
    Predictor,
    dense_state,
    export_stablehlo,
)
from mlg_jax.export import PackedFileError, read_packed
from mlg_jax.kernels import implementation_names
from mlg_jax.layers import layer_records

from .. import _tolerances
from . import _trained


@pytest.fixture(scope="module")
def predictor(path):
    return load_packed(path, batch_sizes=(1, 4))


@functools.lru_cache
def evaluation(model):
    """The compiled training model in evaluation mode."""
    return jax.jit(functools.partial(model.apply, train=False))


@pytest.mark.parametrize(
    "residency, implementation",
    [("float", "auto"), ("codes", "auto"), ("packed", "auto"), ("packed", "generate")],
)
def test_logits_equal_the_training_models_bit_for_bit(
    model_and_variables, path, residency, implementation
):
    model, variables = model_and_variables
    model = dataclasses.replace(model.spec, implementation=implementation).create()
    images = _trained.images(4)
    expected = np.asarray(evaluation(model)(variables, images))
    assert np.ptp(expected) > 0.1
    found = load_packed(path, residency=residency, implementation=implementation, batch_sizes=(4,))
    np.testing.assert_array_equal(found.logits(images), expected)


def test_pixels_get_the_stored_preprocessing(model_and_variables, predictor):
    model, variables = model_and_variables
    pixels = _trained.pixels(4)
    mean, std = (np.array(v) for v in (_trained.PREPROCESSING.mean, _trained.PREPROCESSING.std))
    normalised = ((pixels / 255.0 - mean) / std).astype(np.float32)
    expected = evaluation(model)(variables, normalised)
    error = _tolerances.relative_error(predictor(pixels), expected)
    # A pixel that differs by one unit in the last place may move an activation by one 6-bit step.
    assert error < 1e-2
    assert _tolerances.relative_error(predictor(normalised), expected) == 0.0


@pytest.mark.parametrize("num", [0, 1, 3, 4, 5, 18])
def test_any_number_of_images(predictor, num):
    images = _trained.images(num)
    found = predictor(images)
    assert found.shape == (num, 4) and found.dtype == np.float32
    alone = [predictor(image[None])[0] for image in images]
    for row, expected in zip(found, alone, strict=True):
        assert _tolerances.relative_error(row, expected) < _tolerances.CONTRACTION


def test_device_arrays_and_wider_floats_are_images_too(predictor):
    images = _trained.images(3)
    np.testing.assert_array_equal(predictor(jax.numpy.asarray(images)), predictor(images))
    np.testing.assert_array_equal(predictor(images.astype(np.float64)), predictor(images))


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f4", ">f2"])
def test_images_of_any_byte_order(predictor, dtype):
    images = _trained.images(3)
    expected = images.astype(np.dtype(dtype).newbyteorder("="))
    np.testing.assert_array_equal(predictor(images.astype(dtype)), predictor(expected))


def test_probabilities_and_labels(predictor):
    images = _trained.images(3)
    logits = predictor(images).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(predictor.probabilities(images), expected, rtol=1e-6)
    for row, labels in zip(expected, predictor.labels(images, top=3), strict=True):
        order = sorted(range(4), key=lambda i: -row[i])[:3]
        assert [label.index for label in labels] == order
        assert [label.name for label in labels] == [_trained.CLASS_NAMES[i] for i in order]
        assert [label.probability for label in labels] == pytest.approx(sorted(row)[:0:-1])


@pytest.mark.parametrize("fold", [False, True])
def test_bytes_in_memory(model_and_variables, path, fold):
    model, variables = model_and_variables
    factors = [f for r in layer_records(model) for f in r.factors if f.quant.bits is not None]
    plain = [f for r in layer_records(model) for f in r.factors if f.quant.bits is None]
    num_stats = sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"]))
    num_flags = sum(leaf.dtype == bool for leaf in jax.tree.leaves(variables["batch_stats"]))
    rest = 4 * (sum(f.num_params for f in plain) + num_stats) - 3 * num_flags
    expected = {
        "packed": sum(math.ceil(f.num_bits / 8) + 4 for f in factors) + rest,
        "codes": sum(f.num_params * (1 if f.quant.bits <= 8 else 2) + 4 for f in factors) + rest,
        "float": sum(4 * f.num_params for f in factors) + rest,
    }
    found = {
        residency: load_packed(path, residency=residency, fold=fold).resident_bytes
        for residency in RESIDENCIES
    }
    if fold:  # float: one bias replaces the norm's four arrays; the others are folded in every call
        norms = [r for r in layer_records(model) if r.kind == "norm"]
        expected["float"] -= 3 * 4 * sum(r.factors[0].num_params for r in norms)
    assert found == expected
    assert found["packed"] < 0.6 * found["float"]


def test_no_array_in_memory_is_a_kernel(model_and_variables, predictor):
    model, _ = model_and_variables
    generated = [r for r in layer_records(model) if "basis" in r.factor_names]
    largest = max(array.size for array in predictor._arrays)
    assert largest < max(r.shape.size for r in generated)
    assert all(array.ndim < 4 for array in predictor._arrays)


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_folded_norms_change_nothing_but_rounding(tmp_path, residency):
    model, variables = _trained.trained(activation_bits=None)
    _trained.saved(tmp_path / "model.mlg", model, variables)
    images = _trained.images(4)
    expected = np.asarray(evaluation(model)(variables, images))
    folded = load_packed(tmp_path / "model.mlg", residency=residency, fold=True, batch_sizes=(4,))
    assert _tolerances.relative_error(folded(images), expected) < _tolerances.CONTRACTION


@pytest.mark.slow
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("implementation", implementation_names())
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "squeezenet", "vgg16"])
def test_every_architecture(tmp_path, name, implementation, fold):
    model, variables = _trained.trained(
        name, size=32, activation_bits=None, implementation=implementation
    )
    save_packed(tmp_path / "model.mlg", model, variables)
    images = _trained.images(2, size=32)
    expected = np.asarray(evaluation(model)(variables, images))
    load = functools.partial(load_packed, tmp_path / "model.mlg", batch_sizes=(2,))
    found = load(implementation=implementation, fold=fold)(images)
    limit = _tolerances.CONTRACTION if fold else 0.0
    assert _tolerances.relative_error(found, expected) <= limit


def test_what_the_file_says(predictor, model_and_variables):
    model, _ = model_and_variables
    assert predictor.spec == model.spec
    assert predictor.preprocessing == _trained.PREPROCESSING
    assert predictor.class_names == _trained.CLASS_NAMES
    assert predictor.manifest["metrics"] == _trained.METRICS
    assert predictor.image_shape == (16, 16, 3)


def test_options_do_not_mix_up_what_trained_with_what_serves(tmp_path):
    """The file stores the dtype and the generation patterns, but not the remat policy."""
    generation = {"stage2_*": None, "*": _trained.GENERATION}
    options = {"generation": generation, "remat": "blocks", "dtype": jax.numpy.bfloat16}
    model, variables = _trained.trained(**options, activation_bits=None)
    save_packed(tmp_path / "model.mlg", model, variables)
    predictor = load_packed(tmp_path / "model.mlg", batch_sizes=(2,))
    images = _trained.images(2)
    expected = evaluation(model)(variables, images)
    assert predictor.spec.remat.preset == "none"
    np.testing.assert_array_equal(predictor(images), np.asarray(expected))
    names = [label.name for label in predictor.labels(images[:1], top=4)[0]]
    assert predictor.class_names == () and sorted(names) == ["0", "1", "2", "3"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"residency": "disk"}, ValueError, "`residency` must be one of"),
        ({"implementation": "quick"}, ValueError, "`implementation` must be one of"),
        ({"fold": 1}, TypeError, "`fold` must be bool; got 1"),
        ({"batch_sizes": ()}, ValueError, "`batch_sizes` must be a non-empty sequence of integers"),
        ({"batch_sizes": (0,)}, ValueError, "`batch_sizes` must be an integer >= 1; got 0"),
    ],
)
def test_bad_options(path, options, error, message):
    with pytest.raises(error, match=message):
        load_packed(path, **options)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "images, error, message",
    [
        ([[1.0]], TypeError, "`images` must be ndarray or .*Array; got"),
        (np.zeros((1, 16, 16, 3), int), TypeError, "`images` must be uint8 or floating; got int64"),
        (np.zeros((16, 16, 3), np.uint8), ValueError, r"\[N, 16, 16, 3\]; got \[16, 16, 3\]"),
        (np.zeros((1, 8, 16, 3), np.uint8), ValueError, r"\[N, 16, 16, 3\]; got \[1, 8, 16, 3\]"),
        (np.zeros((1, 16, 16, 1), np.float32), ValueError, r"got \[1, 16, 16, 1\]"),
    ],
)
def test_bad_images(predictor, images, error, message):
    with pytest.raises(error, match=message):
        predictor(images)


@pytest.mark.bad_input
@pytest.mark.parametrize("top", [0, 5])
def test_bad_top(predictor, top):
    with pytest.raises(ValueError, match=r"`top` must be an integer in \[1, 4\]"):
        predictor.labels(_trained.images(1), top=top)


@pytest.mark.bad_input
def test_pixels_need_a_preprocessing(tmp_path, model_and_variables):
    save_packed(tmp_path / "model.mlg", *model_and_variables)
    predictor = load_packed(tmp_path / "model.mlg")
    with pytest.raises(TypeError, match="must be floating and normalised, as .*model.mlg has no"):
        predictor(_trained.pixels(1))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m.pop("model"), "model.mlg: its manifest must have 'model'"),
        (lambda m: m["model"].update(name="resnet19"), "model.mlg: `name` must be one of"),
        (lambda m: m.update(class_names=["cat"]), "model.mlg: `class_names` must be 4"),
        (lambda m: m["preprocessing"].update(std=[0, 1, 1]), "model.mlg: `std` must be a number"),
        (lambda m: m["preprocessing"].pop("mean"), "model.mlg: `preprocessing` must have the keys"),
        (lambda m: m.update(metrics={"a": 10**400}), r"model.mlg: `metrics\['a'\]` must be a num"),
        (lambda m: m["model"].update(width=10**400), "model.mlg: `width` must be a number in"),
        (lambda m: m.update(metrics=3), "model.mlg: `metrics` must be Mapping"),
    ],
)
def test_a_manifest_that_does_not_fit(path, change, message):

    packed = read_packed(path)
    manifest = copy.deepcopy(dict(packed.manifest))
    change(manifest)
    with pytest.raises(PackedFileError, match=message):
        Predictor(dataclasses.replace(packed, manifest=manifest), name="model.mlg")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "change", [{"name": "resnet10"}, {"width": 0.5}, {"width": 1e300}, {"num_classes": 10**18}]
)
def test_tensors_of_another_model(path, change):

    packed = read_packed(path)
    manifest = copy.deepcopy(dict(packed.manifest))
    manifest["model"].update(change)
    manifest["class_names"] = []
    with pytest.raises(PackedFileError, match="model.mlg: its (tensors|layer .*) must"):
        Predictor(dataclasses.replace(packed, manifest=manifest), name="model.mlg")(
            _trained.images(1)
        )


def asking(packed, **changes):
    """The packed model with changes to its model and preprocessing entries."""
    manifest = copy.deepcopy(dict(packed.manifest))
    manifest["model"].update(changes.pop("model", {}))
    manifest["preprocessing"].update(changes)
    return dataclasses.replace(packed, manifest=manifest | {"class_names": []})


@pytest.mark.bad_input
@pytest.mark.parametrize("run", [Predictor, dense_state, export_stablehlo])
@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"image_size": [4096, 4096]},
            "its layer stage1_block1/conv1 must have a kernel and an output of at most 16,812,104 "
            "entries, as its arrays have 4,361 bytes; got 268,435,456 for inputs of 4096x4096x16",
        ),
        ({"model": {"width": 200.0}}, "its layer .* must have a kernel and .* got 1,474,560,000"),
        ({"model": {"num_classes": 2**40}}, "its layer classifier must have a kernel"),
        ({"model": {"width": 1e307}}, "its (tensors|layer .*) must"),
    ],
)
def test_memory_is_bounded_by_the_file(path, run, changes, message):
    """The check comes before any compilation."""
    packed = asking(read_packed(path), **changes)
    with mock.patch.object(jax, "jit", side_effect=AssertionError):
        with pytest.raises(PackedFileError, match=message):
            run(packed)


@pytest.mark.bad_input
@pytest.mark.parametrize("residency", RESIDENCIES)
def test_statistics_to_fold_must_be_there(path, residency):
    packed = read_packed(path)
    tensors = tuple(t for t in packed.tensors if t.path[-1] != "mean")
    packed = dataclasses.replace(packed, tensors=tensors)
    with pytest.raises(PackedFileError, match="model.mlg: its tensors must be .*/mean must"):
        Predictor(packed, residency=residency, fold=True, name="model.mlg")(_trained.images(1))


@pytest.mark.bad_input
def test_statistics_of_another_shape(path):
    """Flax itself compares the shapes of parameters only."""
    packed = read_packed(path)
    tensors = tuple(
        dataclasses.replace(t, shape=(*t.shape, 1)) if t.path[-1] == "mean" else t
        for t in packed.tensors
    )
    with pytest.raises(
        PackedFileError, match="model.mlg: its tensors .*mean must be float .*got f"
    ):
        Predictor(dataclasses.replace(packed, tensors=tensors), name="model.mlg")


@pytest.mark.bad_input
def test_tensors_of_another_type(path):
    packed = read_packed(path)
    tensors = [
        dataclasses.replace(t, data=np.zeros(4, np.uint8), scheme="float32")
        if t.path[-1] == "is_set"
        else t
        for t in packed.tensors
    ]
    with pytest.raises(PackedFileError, match=r"model.mlg: .*is_set must be bool \(\); got float"):
        Predictor(dataclasses.replace(packed, tensors=tuple(tensors)), name="model.mlg")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options, message",
    [
        ({"class_names": ["cat"]}, "`class_names` must be 4 names, one per logit; got 1"),
        ({"metrics": {"test_loss": float("nan")}}, r"`metrics\['test_loss'\]` must be a number"),
        ({"preprocessing": {"mean": 0}}, "`preprocessing` must be ImagePreprocessing or None"),
    ],
)
def test_bad_extras_are_not_saved(tmp_path, model_and_variables, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        save_packed(tmp_path / "model.mlg", *model_and_variables, **options)


@pytest.mark.bad_input
def test_what_no_file_may_ask_for_is_not_saved(tmp_path, model_and_variables):
    huge = ImagePreprocessing(image_size=(4096, 4096), mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(PackedFileError, match="model.mlg: its layer .* inputs of 4096x4096x16"):
        save_packed(tmp_path / "model.mlg", *model_and_variables, preprocessing=huge)
    assert not (tmp_path / "model.mlg").exists()


@pytest.mark.bad_input
def test_variables_of_another_model_are_not_saved(tmp_path, model_and_variables):
    other = create_model("tiny", num_classes=4)
    with pytest.raises(ValueError, match="`variables` must hold"):
        save_packed(tmp_path / "model.mlg", other, model_and_variables[1])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": (8, 0)}, r"`image_size` must be an integer in \[1, 4096\]; got 0"),
        ({"image_size": (8, 10**6)}, r"`image_size` must be an integer in \[1, 4096\]"),
        ({"image_size": 8}, "`image_size` must be a tuple of 2 numbers; got 8"),
        ({"mean": 0.5}, "`mean` must be a tuple of 1 or 3 numbers; got 0.5"),
        ({"mean": (0.5, 0.5)}, "`mean` must be a tuple of 1 or 3 numbers"),
        ({"std": (0.5,)}, "`std` must be a tuple of 3 numbers"),
        ({"resize": "stretch"}, "`resize` must be one of"),
        (
            {"resize": "crop_875_bilinear", "image_size": (8, 9)},
            r"`image_size` must be square for `resize` 'crop_875_bilinear'; got \(8, 9\)",
        ),
    ],
)
def test_bad_preprocessing(options, message):
    defaults = {"image_size": (8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises((TypeError, ValueError), match=message):
        ImagePreprocessing(**(defaults | options))
