"""Rectifiers with sign residuals: JAX's values and gradients, and the size of the residuals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax.layers import relu6_by_sign, relu_by_sign
from mlg_jax.memory import list_residuals

PAIRS = [(relu_by_sign, jax.nn.relu), (relu6_by_sign, jax.nn.relu6)]


@pytest.mark.parametrize("ours, jaxs", PAIRS)
@pytest.mark.parametrize("channels", [1, 31, 40])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_gradient_are_jaxs(ours, jaxs, channels, dtype):
    rng = np.random.default_rng(0)
    x, ct = (jnp.asarray(4 * rng.normal(size=(2, 5, 3, channels)), dtype) for _ in range(2))
    (y, pull), (expected, expected_pull) = jax.vjp(ours, x), jax.vjp(jaxs, x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(pull(ct)[0], expected_pull(ct)[0])


@pytest.mark.parametrize("ours", [relu_by_sign, relu6_by_sign])
def test_one_bit_an_entry_is_kept(ours):
    x = jax.ShapeDtypeStruct((4, 8, 64), jnp.float32)
    rows = [r for r in list_residuals(ours, x) if r.kind == "activation"]
    assert [(r.dtype, r.num_bytes) for r in rows] == [("uint32", 4 * 8 * 64 // 8)]


def test_edges_have_no_gradient():
    x = jnp.array([[0.0, -0.0, 6.0, 3.0, jnp.inf]])
    np.testing.assert_array_equal(jax.grad(lambda x: relu6_by_sign(x).sum())(x), [[0, 0, 0, 1, 0]])
    np.testing.assert_array_equal(jax.grad(lambda x: relu_by_sign(x).sum())(x), [[0, 0, 1, 1, 0]])
