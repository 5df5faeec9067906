"""Layers inside `jax.shard_map`, with its default checks."""

import jax
import jax.numpy as jnp
import numpy as np

from mlg_jax.layers import BatchNorm
from tests._devices import assert_on_four_devices
from tests._tolerances import relative_error


def test_four_devices_equal_one():
    """Compares gradients, values and running statistics, with norms over all devices."""
    assert_on_four_devices("tests.layers.mesh_script")


def test_norms_over_a_mapped_axis_equal_the_whole_batch():
    x = jax.random.normal(jax.random.key(0), (4, 6, 5, 3)) + jnp.arange(4.0)[:, None, None, None]
    whole, parts = BatchNorm(), BatchNorm(axis_name="parts")
    variables = whole.init(jax.random.key(1), x)

    def apply(layer, x):
        return layer.apply(variables, x, train=True, mutable=["batch_stats"])

    y, updated = apply(whole, x)
    ys, stats = jax.vmap(lambda x: apply(parts, x), axis_name="parts")(x.reshape(2, 2, 6, 5, 3))
    assert relative_error(ys.reshape(x.shape), np.asarray(y)) < 1e-6
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(updated), strict=True):
        assert relative_error(a[0], np.asarray(b)) < 1e-6
