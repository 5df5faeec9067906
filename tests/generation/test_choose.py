"""The cost model of `auto`: its operation counts, its limits and its stored measurements."""

import math

import jax.numpy as jnp
import pytest

from mlg_jax import GenerationSpec, create_model
from mlg_jax._types import KernelShape, LayerGeometry
from mlg_jax.generation import IMPLEMENTATIONS, _choose, distinct_implementations, multiply_adds
from mlg_jax.layers import layer_records
from mlg_jax.models import MODELS

SPEC = GenerationSpec(2, 44)
DEEP = {"resnet34", "resnet101", "resnet152"}  # repeat the layers of shallower networks


def layer(kernel, size, batch=1, **options):
    half = tuple((k // 2, k // 2) for k in kernel.window or ())
    channels = kernel.in_channels * options.get("groups", 1)
    shape = (batch, *size, channels)
    return LayerGeometry(("x",), "conv", kernel, padding=half, input_shape=shape, **options)


@pytest.mark.parametrize(
    "implementation, expected",
    [
        ("generate", 512 * 512 * 9 + 512 * 512 * 9 * 44 / 16 + 44 * 512 * 2 * 9 / 16),
        ("factored_out", 512 * 44 * 9 + 44 * 512 + 44 * 512 * 2 * 9 / 16),
        ("factored", 512 * 88 + 88 * 9 + 44 * 512),
    ],
)
def test_multiply_adds_a_position(implementation, expected):
    record = layer(KernelShape(512, 512, (3, 3)), (4, 4))
    assert multiply_adds(implementation, SPEC.resolve(record.shape), record) == 16 * expected


def test_strides_are_those_of_the_middle():
    record = layer(KernelShape(128, 64, (3, 3)), (32, 32), strides=(2, 2))
    expected = 1024 * 64 * 88 + 256 * (88 * 9 + 44 * 128)
    assert multiply_adds("factored", SPEC.resolve(record.shape), record) == expected


@pytest.mark.parametrize(
    "kernel, spec, expected",
    [
        (KernelShape(64, 64, (3, 3)), SPEC, ("generate", "factored_out", "factored")),
        (KernelShape(64, 64, (1, 1)), SPEC, ("generate", "factored_out")),
        (KernelShape(64, 64, (3, 3)), GenerationSpec(2, 0), ("generate", "factored")),
        (KernelShape(64, 64, (3, 3)), GenerationSpec(0, 44), ("generate", "factored_out")),
    ],
)
def test_implementations_that_differ(kernel, spec, expected):
    assert distinct_implementations(spec.resolve(kernel)) == expected


@pytest.mark.parametrize("name", sorted(set(MODELS) - DEEP))
@pytest.mark.parametrize("batch, is_training", [(1, False), (64, True)])
def test_auto_needs_no_more_than_half_as_much_again_as_the_least_arithmetic(
    name, batch, is_training
):
    model = create_model(name, num_classes=10, generation=SPEC)
    shape = (batch, *model.input_shape[1:])
    records = [r for r in layer_records(model, shape, is_training=is_training) if r.implementation]
    assert records
    for record in records:
        shapes = SPEC.resolve(record.shape)
        counts = {e: multiply_adds(e, shapes, record) for e in distinct_implementations(shapes)}
        assert counts[record.implementation] <= 1.5 * min(counts.values()), record.name


def test_shipped_costs_are_whole_and_decide(monkeypatch):
    costs = _choose._table()["seconds"]
    for setting in ("cpu, float32, forward", "cpu, float32, training"):
        for implementation in IMPLEMENTATIONS:
            rates = costs[setting][f"{implementation}, k x k"]
            assert all(math.isfinite(r) and r >= 0 for r in rates.values())
            assert sum(rates.values()) > 0
    record = layer(KernelShape(64, 64, (3, 3)), (32, 32))
    shapes = SPEC.resolve(record.shape)
    monkeypatch.setattr(_choose, "MAX_MULTIPLY_ADDS", 100)
    names = {"calls", "kernel_entries", "entries", "inner_entries", "building_multiply_adds"}
    names |= {"multiply_adds", "across_multiply_adds", "shifted_multiply_adds"}
    slow = {
        f"{e}, k x k": dict.fromkeys(names, float(e != "factored_out")) for e in IMPLEMENTATIONS
    }
    assert _choose.cheapest(shapes, record, slow, is_training=False) == "factored_out"


def test_without_a_calibration_the_least_arithmetic_decides(monkeypatch):
    monkeypatch.setattr(_choose, "_table", lambda: {"seconds": {}, "estimated": {}})
    wide = layer(KernelShape(512, 512, (3, 3)), (4, 4))
    depthwise = layer(KernelShape(64, 1, (3, 3)), (8, 8), groups=64)
    spec = GenerationSpec(0, 8)
    for record, which, expected in ((wide, SPEC, "factored"), (depthwise, spec, "generate")):
        chosen = _choose.choose_implementation(
            which.resolve(record.shape), record, jnp.bfloat16, is_training=True
        )
        assert chosen == expected
