"""The memory report: hand-counted sums, Markdown, JSON, and None for what is unknown."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from mlg_jax.memory import AllocatorPeak, memory_report

IS_CPU = jax.default_backend() == "cpu"
KERNEL = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
X = np.arange(-16, 16, dtype=np.float32).reshape(4, 8)


def loss(kernel, x):
    return jnp.sum(jnp.sin(checkpoint_name(nn.relu(x), "packed") @ kernel))


@pytest.fixture(scope="module")
def report():
    return memory_report(loss, KERNEL, X)


def test_bytes(report):
    # saved: the kernel; the mask, zeros and output of ReLU; the cosine of the product
    by_kind = {"argument": 4 * 24, "constant": 4 * 32, "activation": 32 + 4 * 32 + 4 * 12}
    assert report.bytes_by_kind == by_kind
    assert report.total_residual_bytes == sum(by_kind.values())
    assert report.activation_bytes == by_kind["activation"]
    assert report.bytes_by_operation == {"packed": 128, "cos": 48, "gt": 32}
    assert report.compiled.argument_bytes == 4 * (24 + 32)


def test_zero_fractions(report):
    zeros = {row.operation: row.zero_fraction for row in report.residuals}
    is_zero = np.mean(X <= 0)
    assert (zeros["packed"], zeros["gt"], zeros["cos"]) == (is_zero, is_zero, 0.0)
    expected = (128 * is_zero + 32 * is_zero) / (128 + 32 + 48)
    assert report.activation_zero_fraction == pytest.approx(expected, rel=1e-12)


def test_json_round_trip(report):
    data = report.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["activation_bytes"] == report.activation_bytes
    assert [row["name"] for row in data["residuals"]] == [row.name for row in report.residuals]
    assert data["residuals"][0]["shape"] == [8, 3]
    assert data["compiled"]["total_bytes"] == report.compiled.total_bytes
    assert data["jax_version"] == jax.__version__


def test_markdown_shows_every_residual(report):
    lines = report.to_markdown().splitlines()
    table = lines[lines.index("|---|---|---|---|--:|--:|---|") + 1 :]
    assert len(table) == len(report.residuals)
    assert {line.count("|") for line in table} == {8}
    zeros = np.mean(X <= 0)
    [row] = [line for line in table if line.startswith("| packed |")]
    assert f"| activation | 4×8 | float32 | 128 | {zeros:.4f} | packed test_report.py:" in row
    assert "| residuals: activations | 208 | 0.000 |" in lines


@pytest.mark.skipif(not IS_CPU, reason="needs a device without allocator counters")
def test_unknown_bytes_are_reported_as_such(report):
    assert report.allocator is None and report.to_dict()["allocator"] is None
    assert "| allocator: peak of the process | not known | not known |" in report.to_markdown()


def test_allocator_is_reported(report):
    known = dataclasses.replace(report, allocator=AllocatorPeak(100, 300, 2**20))
    assert known.to_dict()["allocator"]["call_bytes"] == 2**20 - 100
    assert "| allocator: peak of the process | 1,048,576 | 1.000 |" in known.to_markdown()
    unknown = dataclasses.replace(report, allocator=AllocatorPeak(100, 300, 300), compiled=None)
    assert unknown.to_dict()["allocator"]["call_bytes"] is None
    assert unknown.to_dict()["compiled"] is None
    text = unknown.to_markdown()
    assert "| compiled: temporaries | not known | not known |" in text
    assert "FLOPs: not known." in text


def test_shapes_are_compiled_and_never_run():
    def fn(x):
        jax.debug.callback(lambda: 1 / 0)
        return jnp.sin(x)

    report = memory_report(fn, jax.ShapeDtypeStruct((4, 8), jnp.float32))
    assert [row.zero_fraction for row in report.residuals] == [None]
    assert report.activation_zero_fraction is None and report.allocator is None
    assert report.compiled.argument_bytes == 128
    assert "| cos | activation | 4×8 | float32 | 128 | not known |" in report.to_markdown()
    json.dumps(report.to_dict(), allow_nan=False)


def test_one_shape_among_arrays_is_enough_to_run_nothing():
    report = memory_report(loss, KERNEL, jax.ShapeDtypeStruct((4, 8), jnp.float32))
    assert {row.zero_fraction for row in report.residuals} == {None}


def test_checkpoint_policies_change_the_report():
    policy = jax.checkpoint_policies.save_only_these_names("packed")
    report = memory_report(jax.checkpoint(loss, policy=policy), KERNEL, X, argnums=0)
    assert report.bytes_by_operation == {"packed": 128}


def test_pipes_in_names_are_escaped_in_the_table():
    report = memory_report(lambda d: jnp.sum(d["a|b"] * d["c"]), {"a|b": X, "c": X})
    assert r"args[0]['a\|b']" in report.to_markdown()


def test_a_report_is_frozen(report):
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.device = "other"


def test_a_function_without_residuals():
    report = memory_report(lambda x: jnp.sum(x), X)
    assert report.residuals == () and report.total_residual_bytes == 0
    assert report.activation_zero_fraction is None
    assert report.to_markdown()


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(TypeError, match="`fn` must be a function; got None"):
        memory_report(None, X)
    with pytest.raises(ValueError, match=r"must hold a floating-point array; got dtypes \['int32"):
        memory_report(jnp.sum, jnp.arange(3))
    with pytest.raises(ValueError, match=r"must hold a floating-point array; got dtypes \[\]"):
        memory_report(lambda: 0.0)


def test_a_loss_with_python_numbers_as_auxiliary_output():
    def loss(x):
        return jnp.sum(jnp.sin(x)), {"n": 3}

    x = jnp.ones((4, 8))
    expected = memory_report(lambda x: jnp.sum(jnp.sin(x)), x).activation_bytes
    assert memory_report(loss, x).activation_bytes == expected
    assert memory_report(loss, x, has_aux=True).activation_bytes == expected
