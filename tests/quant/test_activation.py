"""Activation quantisers against the original's numbers, bit for bit, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax.quant import ActivationSpec, initial_range, quantize_activation, update_range


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("is_jitted", [False, True], ids=["eager", "jit"])
def test_running_range_matches_the_original_bit_for_bit(reference, bits, is_jitted):
    numbers, spec = reference("quantizers"), ActivationSpec(bits)
    wrap = jax.jit if is_jitted else lambda f: f
    quantize = wrap(lambda x, state: quantize_activation(x, spec, state))
    state = initial_range()
    for batch in range(4):
        case = f"in/normal/{bits}/train{batch}/"
        x = jnp.asarray(numbers[case + "x"])
        state = wrap(update_range)(state, x)
        y, vjp = jax.vjp(lambda x, s=state: quantize(x, s), x)
        assert state.minimum == numbers[case + "min"] and state.maximum == numbers[case + "max"]
        assert np.array_equal(y, numbers[case + "y"])
        assert np.array_equal(vjp(jnp.asarray(numbers[case + "ct"]))[0], numbers[case + "dx"])
    case = f"in/normal/{bits}/eval/"
    assert np.array_equal(quantize(jnp.asarray(numbers[case + "x"]), state), numbers[case + "y"])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_dorefa_matches_the_original(reference, bits):
    numbers, case = reference("quantizers"), f"in/dorefa/{bits}/"
    spec = ActivationSpec(bits, "dorefa")
    y, vjp = jax.vjp(lambda x: quantize_activation(x, spec), jnp.asarray(numbers[case + "x"]))
    np.testing.assert_allclose(y, numbers[case + "y"], rtol=1e-6)
    assert np.array_equal(vjp(jnp.asarray(numbers[case + "ct"]))[0], numbers[case + "dx"])


def test_first_batch_sets_the_range_and_later_ones_move_it_by_one_percent():
    state = update_range(initial_range(), jnp.array([-1.0, 3.0]))
    assert (state.minimum, state.maximum) == (-1.0, 3.0)
    state = update_range(state, jnp.array([-2.0, 13.0]))
    np.testing.assert_allclose([state.minimum, state.maximum], [-1.01, 3.1], rtol=1e-6)


def test_no_gradient_flows_through_the_running_range():
    def through_range(x):
        state = update_range(initial_range(), x)
        return state.minimum + state.maximum

    assert not np.any(jax.grad(through_range)(jnp.array([1.0, 2.0])))


def test_bfloat16_is_quantised_in_the_precision_of_the_range():
    x = jnp.linspace(-1, 1, 64, dtype=jnp.bfloat16)
    state = update_range(initial_range(), x)
    wide = quantize_activation(x.astype(jnp.float32), ActivationSpec(8), state)
    y = quantize_activation(x, ActivationSpec(8), state)
    assert y.dtype == jnp.bfloat16 and np.array_equal(y, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("bits", [1, 4, 16])
def test_zero_is_a_level(bits):
    x = jnp.linspace(-0.7, 1.9, 101).at[3].set(0.0)
    y = quantize_activation(x, ActivationSpec(bits), update_range(initial_range(), x))
    assert y[3] == 0.0 and len(np.unique(y)) <= 2**bits


def test_sixteen_bits_are_quantised_and_none_is_the_identity():
    x = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)
    y = quantize_activation(x, ActivationSpec(16), update_range(initial_range(), x))
    assert not np.array_equal(y, x) and np.max(np.abs(y - x)) < 1e-4
    assert quantize_activation(x, ActivationSpec()) is x


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(TypeError, match="`x` must have a floating-point dtype; got int32"):
        quantize_activation(jnp.arange(3), ActivationSpec(4))
    with pytest.raises(ValueError, match="`state` must be an ActivationRange .*; got None"):
        quantize_activation(jnp.ones(3), ActivationSpec(4))
    with pytest.raises(TypeError, match="`spec` must be ActivationSpec; got 4"):
        quantize_activation(jnp.ones(3), 4)
