"""Compiled bytes against bytes counted by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest

from mlg_jax.memory import compiled_memory, gradient_memory

F32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
PARAMS = {"kernel": F32((8, 3)), "bias": F32((3,))}
X = F32((4, 8))
# XLA returns several outputs as a table of 8-byte pointers, which it counts as output.
ADDRESS = 8


def loss(params, x):
    return jnp.sum(jnp.sin(x @ params["kernel"] + params["bias"]))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_arguments_and_outputs(wrap):
    memory = compiled_memory(wrap(lambda p, x: x @ p["kernel"] + p["bias"]), PARAMS, X)
    assert memory.argument_bytes == 4 * (8 * 3 + 3 + 4 * 8)
    assert memory.output_bytes == 4 * (4 * 3)
    assert memory.alias_bytes == 0
    # at least two per multiply-add
    assert memory.flops >= 2 * 4 * 8 * 3


def test_gradients_are_outputs():
    both = gradient_memory(loss, PARAMS, X)
    assert both.argument_bytes == 4 * (8 * 3 + 3 + 4 * 8)
    assert both.output_bytes == 4 * (1 + 8 * 3 + 3 + 4 * 8) + 4 * ADDRESS
    params_only = gradient_memory(loss, PARAMS, X, argnums=0)
    assert params_only.output_bytes == 4 * (1 + 8 * 3 + 3) + 3 * ADDRESS


def test_auxiliary_output_is_an_output():
    memory = gradient_memory(lambda x: (jnp.sum(jnp.sin(x)), jnp.cos(x)), X, has_aux=True)
    assert memory.output_bytes == 4 * (1 + 4 * 8 + 4 * 8) + 3 * ADDRESS


def test_donated_arguments_are_aliased_and_counted_once():
    memory = compiled_memory(jax.jit(lambda x: x + 1, donate_argnums=0), X)
    assert (memory.argument_bytes, memory.output_bytes, memory.alias_bytes) == (128, 128, 128)
    assert memory.total_bytes == 128 + memory.temporary_bytes


def test_temporaries_hold_a_materialised_array():
    memory = compiled_memory(lambda x: jnp.sum(jnp.sort(x)), F32((256, 256)))
    assert 4 * 256 * 256 <= memory.temporary_bytes < 2 * 4 * 256 * 256
    assert compiled_memory(jnp.negative, X).temporary_bytes == 0


def test_arrays_and_shapes_agree():
    arrays = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), (PARAMS, X))
    assert gradient_memory(loss, *arrays) == gradient_memory(loss, PARAMS, X)


def test_gradient_of_an_array_is_that_of_its_sum():
    assert gradient_memory(jnp.sin, X).output_bytes == 2 * 128 + 2 * ADDRESS


def test_integer_arguments_are_accepted_beside_floats():
    def fn(x, index):
        return {"value": x[index], "index": index}

    memory = gradient_memory(fn, X, jax.ShapeDtypeStruct((5,), jnp.int32))
    assert memory.argument_bytes == 128 + 20
    assert memory.output_bytes == 5 * 8 * 4 + 20 + 128 + 3 * ADDRESS


def test_a_backend_that_reports_nothing():
    from mlg_jax.memory._compiled import memory_of

    class Silent:
        def memory_analysis(self):
            return None

        def cost_analysis(self):
            return None

    class Memory:
        argument_size_in_bytes = output_size_in_bytes = temp_size_in_bytes = 1
        alias_size_in_bytes = 0

    class Vague(Silent):
        def memory_analysis(self):
            return Memory()

    class Negative(Vague):
        def cost_analysis(self):
            return {"flops": -1.0}

    assert memory_of(Silent()) is None
    assert memory_of(Vague()).flops is None and memory_of(Vague()).total_bytes == 3
    assert memory_of(Negative()).flops is None


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(TypeError, match="`fn` must be a function; got 'f'"):
        compiled_memory("f", X)
    with pytest.raises(ValueError, match="`args` must hold a floating-point array"):
        gradient_memory(jnp.sum, jnp.arange(3))
