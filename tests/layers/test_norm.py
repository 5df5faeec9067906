"""Batch normalisation: PyTorch's rule in closed form, and Flax's where the two agree."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax.layers import BatchNorm
from tests._tolerances import relative_error


def batch(dtype=np.float64, shape=(4, 3, 5, 6)):
    return jnp.asarray(np.random.default_rng(0).normal(2.0, 3.0, shape), dtype)


def test_training_uses_biased_variance_and_stores_the_unbiased(x64):
    x, layer = batch(), BatchNorm(momentum=0.9, param_dtype=jnp.float64)
    variables = layer.init(jax.random.key(0), x)
    y, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    flat = np.asarray(x).reshape(-1, 6)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    assert relative_error(y.reshape(-1, 6), expected) < 1e-12
    stats = updated["batch_stats"]
    assert relative_error(stats["mean"], 0.1 * flat.mean(0)) < 1e-12
    assert relative_error(stats["var"], 0.9 + 0.1 * flat.var(0, ddof=1)) < 1e-12


def test_gradients_equal_flax(x64):
    x = batch()
    ours, flaxs = BatchNorm(param_dtype=jnp.float64), nn.BatchNorm(param_dtype=jnp.float64)
    variables = ours.init(jax.random.key(0), x)

    def loss(params, x, apply):
        stats = {"batch_stats": variables["batch_stats"]}
        return jnp.sum(jnp.sin(apply({"params": params, **stats}, x)[0]))

    def gradients(layer, **mode):
        apply = lambda v, x: layer.apply(v, x, mutable=["batch_stats"], **mode)  # noqa: E731
        return jax.grad(loss, (0, 1))(variables["params"], x, apply)

    got, expected = gradients(ours, train=True), gradients(flaxs, use_running_average=False)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) < 1e-10


def test_evaluation_reads_the_running_statistics():
    x, layer = batch(np.float32), BatchNorm(momentum=0.9)
    variables = {
        "params": {"scale": jnp.full(6, 2.0), "bias": jnp.full(6, 1.0)},
        "batch_stats": {"mean": jnp.full(6, 0.5), "var": jnp.full(6, 4.0)},
    }
    expected = (np.asarray(x) - 0.5) / np.sqrt(4.0 + 1e-5) * 2 + 1
    assert relative_error(layer.apply(variables, x), expected) < 1e-6


def test_running_statistics_in_training_stay_and_keep_no_input():
    x, layer = batch(np.float32), BatchNorm(statistics="running")
    variables = {
        "params": {"scale": jnp.full(6, 2.0), "bias": jnp.full(6, 1.0)},
        "batch_stats": {"mean": jnp.full(6, 0.5), "var": jnp.full(6, 4.0)},
    }
    y, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, layer.apply(variables, x))
    for name, value in variables["batch_stats"].items():
        np.testing.assert_array_equal(updated["batch_stats"][name], value)

    def kept_by(layer):
        def of_bias(bias, x):
            params = {**variables["params"], "bias": bias}
            values = {**variables, "params": params}
            return layer.apply(values, x, train=True, mutable=["batch_stats"])[0]

        pulled = jax.eval_shape(lambda *a: jax.vjp(of_bias, *a)[1], jnp.ones(6), x)
        return sum(leaf.size for leaf in jax.tree.leaves(pulled))

    assert kept_by(layer) < x.size <= kept_by(BatchNorm(momentum=0.9))


@pytest.mark.parametrize("mean", [1e3, -1e4])
@pytest.mark.parametrize("shape", [(8, 8, 8, 3), (256, 3)])
def test_a_large_mean_does_not_cancel(mean, shape):
    x = mean + jax.random.normal(jax.random.key(0), shape)
    layer = BatchNorm(momentum=0.9)
    y, updated = layer.apply(
        layer.init(jax.random.key(1), x), x, train=True, mutable=["batch_stats"]
    )
    flat = np.asarray(x, np.float64).reshape(-1, 3)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    # The spacing of float32 numbers near 1e4 is about 1e-3.
    np.testing.assert_allclose(np.asarray(y).reshape(-1, 3), expected, atol=1e-3)
    variance = 0.9 + 0.1 * flat.var(0, ddof=1)
    assert relative_error(updated["batch_stats"]["var"], variance) < 1e-5


def test_a_first_example_far_from_the_others_does_not_cancel():
    x = (1e4 + jax.random.normal(jax.random.key(0), (16, 4, 4, 3))).at[0].set(0.0)
    layer = BatchNorm(momentum=0.9)
    _, updated = layer.apply(
        layer.init(jax.random.key(1), x), x, train=True, mutable=["batch_stats"]
    )
    exact = np.asarray(x, np.float64).reshape(-1, 3).var(0, ddof=1)
    assert relative_error(updated["batch_stats"]["var"], 0.9 + 0.1 * exact) < 1e-5


def test_bfloat16_input_statistics_in_float32():
    x = batch(np.float32).astype(jnp.bfloat16)
    layer = BatchNorm(momentum=0.9)
    variables = layer.init(jax.random.key(0), x)
    y, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    exact = 0.1 * np.asarray(x, np.float64).reshape(-1, 6).mean(0)
    assert y.dtype == jnp.bfloat16 and updated["batch_stats"]["mean"].dtype == jnp.float32
    assert relative_error(updated["batch_stats"]["mean"], exact) < 1e-5


def test_one_value_a_channel_stays_finite():
    layer, x = BatchNorm(momentum=0.9), jnp.ones((1, 1, 1, 3))
    y, updated = layer.apply(
        layer.init(jax.random.key(0), x), x, train=True, mutable=["batch_stats"]
    )
    assert np.all(np.isfinite(y)) and np.all(np.isfinite(updated["batch_stats"]["var"]))


def test_running_statistics_pass_no_gradient_and_variance_stays_positive():
    layer, x = BatchNorm(momentum=0.9), 1e4 + jnp.zeros((64, 3)).at[0].set(1e-2)
    variables = layer.init(jax.random.key(0), x)

    def running(x):
        y, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
        return updated["batch_stats"]["mean"].sum() + updated["batch_stats"]["var"].sum(), y

    gradient, y = jax.grad(running, has_aux=True)(x)
    assert not np.any(gradient) and np.all(np.isfinite(y))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "layer, message",
    [
        (BatchNorm(momentum=2.0), r"`momentum` must be a number in \[0.0, 1.0\]; got 2.0"),
        (BatchNorm(epsilon=-1.0), r"`epsilon` must be a number in \(0.0, inf\); got -1.0"),
        (
            BatchNorm(statistics="own"),
            r"`statistics` must be one of \['batch', 'running'\]; got 'own'",
        ),
    ],
)
def test_bad_settings(layer, message):
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), jnp.ones((2, 3)))


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(TypeError, match="`x` must have a floating-point dtype; got int32"):
        BatchNorm(momentum=0.9).init(jax.random.key(0), jnp.ones((2, 3), jnp.int32))
