"""Specs are frozen and hashable; errors name the argument, its value and the choices."""

import dataclasses
import os

import pytest

from mlg_jax.data import AugmentSpec, DataSpec, SyntheticSpec


def test_specs_are_values():
    spec = DataSpec(name="digits", augment=AugmentSpec(crop_padding=1))
    assert spec == DataSpec(name="digits", augment=AugmentSpec(crop_padding=1))
    assert hash(spec) == hash(dataclasses.replace(spec))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.seed = 3


def test_directory_default_is_that_of_tensorflow_datasets(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert DataSpec(name="cifar10").directory == os.path.expanduser("~/tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", "/elsewhere")
    assert DataSpec(name="cifar10").directory == "/elsewhere"
    assert DataSpec(name="cifar10", data_dir="~/here").directory == os.path.expanduser("~/here")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"name": "cifar11"},
            ValueError,
            r"`name` must be one of \['cars196', .*\]; got 'cifar11'",
        ),
        (
            {"residency": "yes"},
            ValueError,
            r"`residency` must be one of \['always', 'auto', 'never",
        ),
        ({"batch_size": 0}, ValueError, "`batch_size` must be an integer >= 1; got 0"),
        ({"batch_size": 2.0}, TypeError, "`batch_size` must be an integer >= 1; got 2.0"),
        ({"eval_batch_size": True}, TypeError, "`eval_batch_size` must be an integer"),
        ({"num_validation": -1}, ValueError, "`num_validation` must be an integer >= 0; got -1"),
        ({"train_limit": 0}, ValueError, "`train_limit` must be an integer >= 1; got 0"),
        ({"image_size": 0}, ValueError, "`image_size` must be an integer >= 1; got 0"),
        ({"seed": -1}, ValueError, r"`seed` must be an integer in \[0, 9223372036854775807\]; got"),
        ({"mean": (0.5, 0.5)}, ValueError, r"`mean` must have 1 or 3 entries.*got \(0.5, 0.5\)"),
        ({"mean": [0.5]}, TypeError, r"`mean` must be tuple or None; got \[0.5\]"),
        ({"std": (0.0,)}, ValueError, r"`std` must be a number in \(0.0, inf\); got 0.0"),
        ({"std": (float("nan"),)}, ValueError, "`std` must be a number"),
        ({"augment": {}}, TypeError, "`augment` must be AugmentSpec; got {}"),
        ({"download": 1}, TypeError, "`download` must be bool; got 1"),
        ({"variant": "x"}, ValueError, "`variant` must be None for 'digits'; got 'x'"),
        ({"synthetic": SyntheticSpec()}, ValueError, "`synthetic` must be None for 'digits'"),
        ({"name": "npz"}, ValueError, "`data_dir` must be a directory for 'npz'; got None"),
        ({"name": "image_folder"}, ValueError, "`data_dir` must be a directory"),
    ],
)
def test_data_spec_rejects(arguments, error, message):
    with pytest.raises(error, match=message):
        DataSpec(**({"name": "digits"} | arguments))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"crop_padding": 0}, ValueError, "`crop_padding` must be an integer >= 1; got 0"),
        ({"horizontal_flip": 1}, TypeError, "`horizontal_flip` must be bool or str; got 1"),
        ({"horizontal_flip": "never"}, ValueError, "must be one of .*'alternating'.*got 'never'"),
        ({"crop_border": "white"}, ValueError, "`crop_border` must be one of .*got 'white'"),
        ({"cutout_size": -2}, ValueError, "`cutout_size` must be an integer >= 1; got -2"),
        ({"min_area": 1.5}, ValueError, r"`min_area` must be a number in \(0.0, 1.0\]; got 1.5"),
        ({"min_area": 0.0}, ValueError, "`min_area` must be"),
        (
            {"min_area": 0.5, "crop_padding": 4},
            ValueError,
            "`crop_padding` must be None when `min_area` is set; got 4",
        ),
    ],
)
def test_augment_spec_rejects(arguments, error, message):
    with pytest.raises(error, match=message):
        AugmentSpec(**arguments)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "`num_classes` must be an integer >= 2; got 1"),
        ({"num_train": 0}, "`num_train` must be an integer >= 2; got 0"),
        ({"num_test": 0}, "`num_test` must be an integer >= 1; got 0"),
        ({"channels": 2}, "`channels` must be 1 or 3; got 2"),
        ({"noise": -1.0}, "`noise` must be a number"),
    ],
)
def test_synthetic_spec_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        SyntheticSpec(**arguments)
