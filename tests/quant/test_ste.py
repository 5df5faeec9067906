"""The gradient rule of each rounding primitive, and its values in different programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax.quant import _ste

CT = jnp.array([-3.0, -0.5, 0.0, 0.7, 2.0])


def pullback(fn, x, ct=CT):
    y, vjp = jax.vjp(fn, jnp.asarray(x))
    return np.asarray(y), np.asarray(vjp(ct)[0])


def test_round_is_half_to_even_with_a_clamped_cotangent():
    y, dx = pullback(lambda x: _ste.round_ste(x, 1), [0.0, 0.5, 0.51, 0.49, 1.0])
    assert y.tolist() == [0.0, 0.0, 1.0, 0.0, 1.0]
    assert dx.tolist() == [-1.0, -0.5, 0.0, np.float32(0.7), 1.0]


def test_sign_is_zero_at_zero_with_a_clamped_cotangent():
    y, dx = pullback(_ste.sign_ste, [-2.0, -0.1, 0.0, 0.1, 5.0])
    assert y.tolist() == [-1.0, -1.0, 0.0, 1.0, 1.0]
    assert dx.tolist() == [-1.0, -0.5, 0.0, np.float32(0.7), 1.0]


def test_activation_rounding_does_not_clamp_and_has_no_gradient_outside():
    y, dx = pullback(lambda x: _ste.clip_round_ste(x, 2), [-0.5, 0.0, 0.4, 1.0, 1.5])
    np.testing.assert_array_equal(y, np.float32([0, 0, np.float32(1) * np.float32(1 / 3), 1, 1]))
    assert dx.tolist() == [0.0, -0.5, 0.0, np.float32(0.7), 0.0]


def test_affine_gradient_is_the_identity_also_outside_the_range():
    fn = lambda x: _ste.affine_ste(x, jnp.float32(0.1), jnp.float32(3.0), 3)  # noqa: E731
    y, dx = pullback(fn, [-9.0, -0.3, 0.0, 0.14, 9.0])
    np.testing.assert_allclose(y, [-0.3, -0.3, 0.0, 0.1, 0.4], rtol=1e-6, atol=1e-7)
    assert np.array_equal(dx, CT)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_ewgs_matches_the_original_bit_for_bit(reference, bits):
    case = {k: reference("quantizers")[f"ewgs/{2**bits}/{k}"] for k in ("x", "y", "ct", "dx")}
    for wrap in (lambda f: f, jax.jit):
        y, dx = pullback(wrap(lambda x: _ste.round_ewgs(x, bits)), case["x"], case["ct"])
        assert np.array_equal(y, case["y"]) and np.array_equal(dx, case["dx"])


def test_ewgs_scales_the_gradient_by_the_distance_to_the_level():
    x = jnp.array([0.1, 0.4])
    _, dx = pullback(lambda x: _ste.round_ewgs(x, 1), x, jnp.array([1.0, -2.0]))
    np.testing.assert_allclose(dx, [1 + 1e-3 * 0.1, -2 * (1 - 1e-3 * 0.4)], rtol=1e-6)


@pytest.mark.parametrize("bits", range(1, 17))
def test_grid_values_do_not_depend_on_the_surrounding_program(bits):
    levels = jnp.arange(2**bits, dtype=jnp.float32)
    grid = _ste.to_grid(levels, bits)
    assert grid[0] == 0.0 and grid[-1] == 1.0
    for scale in (1.7, 0.3):
        scaled = jax.jit(lambda v, s: _ste.to_grid(v, bits) * s + 0.25)(levels, scale)
        np.testing.assert_allclose(scaled, np.float64(grid) * np.float32(scale) + 0.25, rtol=1e-6)
    assert np.array_equal(jax.jit(lambda v: _ste.to_grid(v, bits))(levels), grid)


def test_true_division_is_correctly_rounded_under_jit():
    x = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    for divisor in (np.float32(0.3), np.float32(65535.0)):
        expected = x / divisor
        assert np.array_equal(jax.jit(_ste.true_divide)(x, divisor), expected)
        assert not np.array_equal(x * (1 / divisor), expected), "the reciprocal would pass, too"
