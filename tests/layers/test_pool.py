import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mlg_jax.layers import global_mean_pool, max_pool


def test_max_pool_pads_with_minus_infinity():
    x = -1.0 - jnp.arange(2 * 5 * 6 * 3, dtype=jnp.float32).reshape(2, 5, 6, 3)
    pads = ((1, 1), (1, 1))
    expected = nn.max_pool(x, (3, 3), (2, 2), pads)
    y = max_pool(x, (3, 3), (2, 2), pads)
    assert y.shape == (2, 3, 3, 3) and np.array_equal(y, expected) and np.all(y < 0)


def test_global_mean():
    x = jnp.arange(24.0).reshape(1, 2, 4, 3)
    assert np.array_equal(global_mean_pool(x), np.asarray(x).mean((1, 2)))
