"""Memory sweeps: which bytes grow with the batch size and which do not."""

import jax
import jax.numpy as jnp
import pytest

from mlg_jax.memory import gradient_memory, memory_sweep

PARAMS = {"kernel": jax.ShapeDtypeStruct((16, 8), jnp.float32), "count": 3}


def loss(params, x):
    jax.debug.callback(lambda: 1 / 0)
    return jnp.sum(jnp.sin(x @ params["kernel"]) ** params["count"])


def make_args(batch_size):
    return PARAMS, jax.ShapeDtypeStruct((batch_size, 16), jnp.float32)


def test_rows():
    rows = memory_sweep(loss, make_args, [1, 4, 2])
    assert [row.batch_size for row in rows] == [1, 4, 2]
    assert {row.parameter_bytes for row in rows} == {4 * 16 * 8}
    assert {row.gradient_bytes for row in rows} == {4 * 16 * 8}
    one, four, two = (row.activation_bytes for row in rows)
    assert one >= 4 * 2 * 8 and (two, four) == (2 * one, 4 * one)


def test_temporaries_equal_those_of_the_compiled_gradient():
    [row] = memory_sweep(loss, make_args, [64])
    assert row.temporary_bytes == gradient_memory(loss, *make_args(64), argnums=0).temporary_bytes


def test_arrays_are_not_run_either():
    def arrays(batch_size):
        return {"kernel": jnp.ones((16, 8)), "count": 3}, jnp.ones((batch_size, 16))

    [row] = memory_sweep(loss, arrays, [2])
    assert row == memory_sweep(loss, make_args, [2])[0]


def test_all_arguments_and_auxiliary_output():
    def fn(params, x):
        return loss(params, x), x

    [row] = memory_sweep(fn, make_args, [2], argnums=None, has_aux=True)
    assert row.parameter_bytes == 4 * (16 * 8 + 2 * 16)


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(TypeError, match="`make_args` must be a function; got 3"):
        memory_sweep(loss, 3, [1])
    with pytest.raises(ValueError, match="`batch_sizes` must be an integer >= 1; got 0"):
        memory_sweep(loss, make_args, [1, 0])
    with pytest.raises(TypeError, match="`batch_sizes` must be an integer >= 1; got 1.5"):
        memory_sweep(loss, make_args, [1.5])
