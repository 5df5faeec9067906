"""Ordering changes no bit of an array, and is present in the compiled program."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax._linear_vjp import weight_grad_first
from mlg_jax._ordering import (
    materialize,
    materialize_cotangent,
    run_after,
    wait_for,
    wait_for_on_cpu,
)

SPECIAL = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-30, -3.5], np.float32)


def bits(x):
    return np.asarray(x).view(np.uint32)


@pytest.mark.parametrize("to", [SPECIAL, np.arange(3, dtype=np.uint32)], ids=["float", "uint"])
def test_values_keep_their_bits(to):
    for start in range(len(to)):  # whatever the value of the entry that is read
        tied = jax.jit(wait_for)({"a": SPECIAL, "n": np.arange(4)}, to[start:])
        np.testing.assert_array_equal(bits(tied["a"]), bits(SPECIAL))
        np.testing.assert_array_equal(tied["n"], np.arange(4))
    np.testing.assert_array_equal(bits(jax.jit(materialize)(SPECIAL)), bits(SPECIAL))
    np.testing.assert_array_equal(bits(jax.jit(run_after)(SPECIAL, SPECIAL)), bits(SPECIAL))


def test_gradients_are_those_of_the_identity():
    x, y = jnp.arange(3.0), jnp.arange(4.0)
    got = jax.grad(lambda x, y: jnp.sum(jnp.sin(run_after(x, y))) + jnp.sum(y**2), (0, 1))(x, y)
    np.testing.assert_allclose(got[0], np.cos(x), rtol=1e-6)
    np.testing.assert_allclose(got[1], 2 * y, rtol=1e-6)
    for identity in (materialize, materialize_cotangent):
        grad = jax.grad(lambda x, f=identity: jnp.sum(jnp.sin(f(x))))(x)
        np.testing.assert_allclose(grad, np.cos(x), rtol=1e-6)


def test_the_dependency_is_compiled():
    """The program must compute the tied array from `to`, not return its argument."""

    def program(fn):
        return jax.jit(fn).lower(SPECIAL, SPECIAL).compile().as_text()

    assert "select" in program(lambda x, to: wait_for(x, to * 2))
    assert "divide" in program(lambda x, to: materialize(x + to))
    assert "select" not in program(lambda x, to: x)


def test_gpus_get_barriers_and_no_copies():
    traced = jax.jit(lambda x, to: wait_for(materialize(x), to)).trace(SPECIAL, SPECIAL)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "optimization_barrier" in text and "select" not in text and "divide" not in text


def test_on_gpus_two_barriers_hold_the_other_array():
    """XLA would remove that array from a single barrier, as nothing reads it afterwards."""
    traced = jax.jit(lambda x, to: wait_for(x, to)).trace(jnp.zeros((2, 3)), jnp.zeros(4))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    of_x = [line for line in text.splitlines() if "optimization_barrier" in line and "2x3" in line]
    others = [re.search(r"optimization_barrier %\S+, (%\S+) :.*tensor<4xf32>", x) for x in of_x]
    assert len(of_x) == 2 and all(others)
    assert others[0].group(1) == others[1].group(1)


def test_what_only_cpus_need_is_left_out_on_gpus():
    def program(x, to):
        return wait_for_on_cpu(x, to) + run_after(x, to)

    traced = jax.jit(program).trace(jnp.zeros((2, 3)), jnp.zeros(4))
    assert "optimization_barrier" not in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "select" in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_input_is_not_saved_if_the_factors_are_frozen():
    def fn(factors, x):
        return x @ factors

    factors, x = jnp.ones((5, 3)), jnp.arange(35.0).reshape(7, 5)
    run = weight_grad_first(fn)
    leaves = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(lambda x: run(factors, x), x)[1], x))
    assert all(leaf.shape != x.shape for leaf in leaves)
    both = jax.eval_shape(lambda w, x: jax.vjp(run, w, x)[1], factors, x)
    assert any(leaf.shape == x.shape for leaf in jax.tree.leaves(both))
    for argnums in (0, 1, (0, 1)):
        got, wanted = (
            jax.grad(lambda w, x, f=f: jnp.sum(jnp.sin(f(w, x))), argnums)(factors, x)
            for f in (run, fn)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, wanted)
