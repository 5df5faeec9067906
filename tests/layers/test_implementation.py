"""The implementation of a layer: automatic, given, given by path or measured, and recorded."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import GenerationSpec, create_model
from mlg_jax.layers import (
    Conv,
    Dense,
    _tune,
    count_implementations,
    layer_records,
    tune_implementations,
)
from tests._tolerances import CONTRACTION, relative_error

SPEC = GenerationSpec.from_bits(2, 8, 3, 6, 4)
KERNEL = SPEC


def image(shape=(2, 7, 8, 12)):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("implementation", ["generate", "factored_out", "factored", "auto"])
def test_all_are_the_same_layer(implementation):
    x, key = image(), jax.random.key(0)
    layers = (
        Conv(16, (3, 3), kernel=KERNEL, implementation=e) for e in (implementation, "generate")
    )
    got, expected = (layer.apply(layer.init(key, x), x) for layer in layers)
    assert relative_error(got, expected) < CONTRACTION


def test_the_record_says_which():
    (record,) = layer_records(
        Conv(16, (3, 3), kernel=KERNEL, implementation="factored"), (2, 7, 8, 12)
    )
    assert record.implementation == "factored" and record.input_shape == (2, 7, 8, 12)
    (chosen,) = layer_records(Dense(16, kernel=KERNEL), (4, 20))
    assert chosen.implementation in ("generate", "factored_out")
    (dense,) = layer_records(Conv(16, (3, 3)), (2, 7, 8, 12))
    assert dense.implementation is None


def test_patterns_and_their_count():
    patterns = {"stage1_*": "factored", "*shortcut*": "factored_out", "*": "generate"}
    model = create_model(
        "resnet10", num_classes=4, width=0.25, generation=SPEC, implementation=patterns
    )
    records = {
        r.name: r.implementation for r in layer_records(model, (8, 16, 16, 3), is_training=True)
    }
    assert records["stage1_block1/conv2"] == "factored"
    assert records["stage2_block1/shortcut_conv"] == "factored_out"
    assert records["stage2_block1/conv1"] == "generate"
    assert records["stem_conv"] == "generate" and records["classifier"] is None
    counts = count_implementations(layer_records(model))
    assert counts == {"factored": 2, "factored_out": 3, "generate": 7}


def test_tuning_takes_the_fastest_and_remembers(tmp_path, monkeypatch):
    model = create_model("resnet10", num_classes=4, width=0.25, generation=SPEC)
    timed = []

    def timings(record, *, dtype, is_training):
        timed.append(record.name)
        is_last = "stage4" in record.name
        return {n: 1.0 + (is_last == (n == "generate")) for n in record.kernel.implementations}

    monkeypatch.setattr(_tune, "time_implementations", timings)
    first = tune_implementations(model, (1, 16, 16, 3), cache=tmp_path / "times.json")
    assert first["stage4_block1/conv1"] == "factored_out" and first["stem_conv"] == "generate"
    num_timed = len(timed)
    assert num_timed <= len(first)  # equal layers are timed once
    assert tune_implementations(model, (1, 16, 16, 3), cache=tmp_path / "times.json") == first
    assert len(timed) == num_timed
    tune_implementations(model, (2, 16, 16, 3), cache=tmp_path / "times.json")
    assert len(timed) == 2 * num_timed
    tuned = create_model(
        "resnet10", num_classes=4, width=0.25, generation=SPEC, implementation=first
    )
    assert {r.name: r.implementation for r in layer_records(tuned) if r.implementation} == first


def test_timings_that_cannot_be_kept_leave_the_cache_as_it_was(tmp_path, monkeypatch):
    model = create_model("resnet10", num_classes=4, width=0.25, generation=SPEC)
    monkeypatch.setattr(_tune, "time_implementations", lambda *_, **__: {"generate": 1.0})
    cache = tmp_path / "times.json"
    cache.write_text("{}")

    def fail(*args):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"disk full: .*times.json"):
        tune_implementations(model, (1, 16, 16, 3), cache=cache)
    assert cache.read_text() == "{}" and list(tmp_path.iterdir()) == [cache]


def test_timings():
    (record,) = layer_records(Conv(16, (3, 3), kernel=KERNEL), (2, 7, 8, 12))
    seconds = _tune.time_implementations(record, is_training=True)
    assert set(seconds) == {"generate", "factored_out", "factored"}
    assert all(0 < s < 10 for s in seconds.values())


@pytest.mark.bad_input
@pytest.mark.parametrize("content", ["{", "[]", '{"a layer": 1.0}'])
def test_files_that_are_no_timings(tmp_path, content):
    (tmp_path / "times.json").write_text(content)
    model = create_model("resnet10", num_classes=4, width=0.25, generation=SPEC)
    with pytest.raises(ValueError, match="`cache` must be a file of timings or not exist yet; got"):
        tune_implementations(model, (1, 16, 16, 3), cache=tmp_path / "times.json")


@pytest.mark.bad_input
def test_bad_implementations():
    with pytest.raises(ValueError, match=r"`implementation\['stage1\*'\]` must be one of .*'fast'"):
        create_model("resnet10", num_classes=4, generation=SPEC, implementation={"stage1*": "fast"})
