"""Every weight scheme against reference numbers, an independent oracle and its properties."""

import functools

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from mlg_jax import QuantSpec, fake_quantize
from mlg_jax.quant import MIN_BITS, unquantize
from tests import _oracles
from tests._tolerances import ELEMENTWISE, X64, relative_error

SCHEMES = ("dorefa_sym", "dorefa", "dorefa_pos", "qnn", "ewgs")
ROUNDED = [
    (scheme, bits)
    for scheme in SCHEMES
    for bits in (1, 2, 3, 4, 6, 8, 12, 16)
    if bits >= MIN_BITS[scheme]
]
REFERENCE_CASES = [
    *[(s, b) for s in ("dorefa", "dorefa_sym") for b in (1, 2, 3, 4, 6, 8, 16, 32)],
    *[(s, b) for s in ("dorefa_pos", "qnn") for b in (2, 3, 4, 6, 8, 16, 32)],
]


def normal(shape, seed=0, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def value_and_pullback(x, spec, ct, **kwargs):
    y, vjp = jax.vjp(lambda x: fake_quantize(x, spec, **kwargs), jnp.asarray(x))
    return y, vjp(jnp.asarray(ct))[0]


@pytest.mark.parametrize("scheme, bits", REFERENCE_CASES)
@pytest.mark.parametrize("is_jitted", [False, True], ids=["eager", "jit"])
def test_matches_the_original(reference, scheme, bits, is_jitted):
    case = {k: reference("quantizers")[f"w/{scheme}/{bits}/{k}"] for k in ("x", "y", "ct", "dx")}
    spec = QuantSpec(None, "tanh_norm") if bits == 32 else QuantSpec(bits, scheme)
    run = functools.partial(value_and_pullback, spec=spec)
    y, dx = (jax.jit(run) if is_jitted else run)(case["x"], ct=case["ct"])
    assert relative_error(dx, case["dx"]) <= ELEMENTWISE
    levels_apart = np.abs(np.asarray(y) - case["y"]) * (2**bits - 1) / np.ptp(case["y"])
    if bits == 16:  # a float32 tanh may be rounded to the other side of a threshold once
        assert np.sum(levels_apart > 0.5) <= 1
        is_same = levels_apart <= 0.5
        assert relative_error(np.where(is_same, y, 0), np.where(is_same, case["y"], 0)) <= 1e-6
    else:
        assert relative_error(y, case["y"]) <= ELEMENTWISE


@pytest.mark.parametrize("scheme, bits", ROUNDED)
def test_matches_the_oracle_in_float64(x64, scheme, bits):
    x = np.random.default_rng(1).normal(size=(7, 5, 3))
    ct = np.random.default_rng(2).normal(size=x.shape) * 0.6
    y, dx = value_and_pullback(x, QuantSpec(bits, scheme), ct)
    assert relative_error(y, _oracles.quantize(x, bits, scheme)) <= X64
    if scheme == "ewgs":
        unit = _oracles.unrounded(x, bits, scheme)
        error = unit - _oracles.quantize_unit(unit, bits)
        reaching = ct * (1 + 1e-3 * np.sign(ct) * error)
    else:
        scale = _oracles.ct_scale(x, bits, scheme)
        reaching = np.clip(ct * scale, -1, 1) / scale
    expected = reaching * _oracles.d_reparametrisation(x, bits, scheme)
    assert relative_error(dx, expected) <= X64


def test_clamp_acts_on_the_cotangent_that_reaches_the_rounding(x64):
    # There it is 2r ct = 2 * 0.76 * 0.9 > 1, which is clamped although |ct| < 1.
    x, ct = np.array([1.0, -0.3]), np.array([0.9, 0.9])
    _, dx = value_and_pullback(x, QuantSpec(4), ct)
    two_r = 2 * np.tanh(1.0)
    np.testing.assert_allclose(dx, (1 / two_r) * (1 - np.tanh(x) ** 2), rtol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_bits_is_the_exact_identity(scheme):
    x, ct = normal((4, 3)), 5 * normal((4, 3), 1)
    y, dx = value_and_pullback(x, QuantSpec(None, scheme), ct)
    assert np.array_equal(y, x) and np.array_equal(dx, ct)


def test_tanh_norm_differentiates_the_maximum(x64):
    x = np.array([0.3, -1.2, 0.7])
    jax.test_util.check_grads(
        lambda x: fake_quantize(jnp.asarray(x), QuantSpec(None, "tanh_norm")),
        (x,),
        order=1,
        rtol=1e-5,
    )


@pytest.mark.parametrize("scheme, bits", [(s, b) for s, b in ROUNDED if b in (1, 2, 4, 8)])
def test_partial_quantisation_mixes_rounded_and_unrounded(x64, scheme, bits):
    x = np.random.default_rng(3).normal(size=(4000,))
    ct = np.random.default_rng(4).normal(size=x.shape)
    spec = QuantSpec(bits, scheme, ratio=0.8)
    y, dx = value_and_pullback(x, spec, ct, key=jax.random.key(0))
    rounded, exact = _oracles.quantize(x, bits, scheme), _oracles.unrounded(x, bits, scheme)
    is_rounded = np.isclose(y, rounded, rtol=0, atol=1e-12)
    is_exact = np.isclose(y, exact, rtol=0, atol=1e-12)
    assert np.all(is_rounded | is_exact)
    assert abs(np.mean(~is_exact) - 0.8) < 5 * np.sqrt(0.8 * 0.2 / x.size)
    kept = ct * _oracles.d_reparametrisation(x, bits, scheme)
    exact_only = is_exact & ~is_rounded  # the ends of the range are on the grid: both hold
    assert relative_error(np.where(exact_only, dx, 0), np.where(exact_only, kept, 0)) <= X64
    _, straight_through = value_and_pullback(x, QuantSpec(bits, scheme), ct)
    only = is_rounded & ~is_exact
    assert relative_error(np.where(only, dx, 0), np.where(only, straight_through, 0)) <= X64


def test_partial_quantisation_without_a_key_rounds_everything():
    x = normal((50,))
    y = fake_quantize(x, QuantSpec(3, ratio=0.3))
    assert np.array_equal(y, fake_quantize(x, QuantSpec(3)))


def test_partial_quantisation_follows_the_key():
    x, spec = normal((200,)), QuantSpec(3, ratio=0.5)
    same = [fake_quantize(x, spec, key=jax.random.key(7)) for _ in range(2)]
    assert np.array_equal(*same)
    assert not np.array_equal(same[0], fake_quantize(x, spec, key=jax.random.key(8)))


floats = hypothesis.extra.numpy.arrays(
    np.float32,
    hypothesis.extra.numpy.array_shapes(max_dims=3, max_side=6),
    elements=st.floats(-8, 8, width=32),
)


@hypothesis.given(x=floats, case=st.sampled_from([c for c in ROUNDED if c[1] <= 8]))
@hypothesis.settings(max_examples=60)
def test_values_lie_on_few_levels_within_the_range(x, case):
    scheme, bits = case
    y = np.asarray(fake_quantize(jnp.asarray(x), QuantSpec(bits, scheme)))
    assert y.shape == x.shape and y.dtype == x.dtype and np.all(np.isfinite(y))
    assert len(np.unique(y)) <= (3 if bits == 1 else 2**bits)
    if scheme == "dorefa_sym" and bits > 1:
        r = np.max(np.abs(np.tanh(x.astype(np.float64))))
        assert np.max(np.abs(y)) <= r * (1 + 1e-6)
        assert np.max(np.abs(y - np.tanh(x))) <= r / (2**bits - 1) * (1 + 1e-4) + 1e-6


@hypothesis.given(x=floats)
@hypothesis.settings(max_examples=40)
def test_symmetric_scheme_is_odd(x):
    spec = QuantSpec(3)
    y, opposite = (np.asarray(fake_quantize(jnp.asarray(v), spec)) for v in (x, -x))
    # Halves round to even on both sides, so only they may differ.
    u = np.tanh(x.astype(np.float64)) / (2 * max(np.max(np.abs(np.tanh(x))), 1e-30)) + 0.5
    is_clear = np.abs((u * 7) % 1 - 0.5) > 1e-3
    assert relative_error(np.where(is_clear, opposite, 0), np.where(is_clear, -y, 0)) <= ELEMENTWISE


@pytest.mark.parametrize("scheme, bits", [(s, b) for s, b in ROUNDED if b in (1, 4)])
def test_constant_tensors_stay_finite(scheme, bits):
    for value in (0.0, 0.5):
        x = jnp.full((3, 2), value)
        y, dx = value_and_pullback(x, QuantSpec(bits, scheme), jnp.ones_like(x))
        assert np.all(np.isfinite(y)) and np.all(np.isfinite(dx))
    if scheme in ("dorefa_sym", "dorefa_pos", "qnn"):
        assert np.array_equal(fake_quantize(jnp.zeros(3), QuantSpec(bits, scheme)), np.zeros(3))


@pytest.mark.parametrize("scheme, bits", [(s, b) for s, b in ROUNDED if b in (1, 4)])
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e30])
def test_gradients_stay_finite_at_any_scale(scheme, bits, scale):
    x = jnp.array([1.0, 0.3, -1.0]) * scale
    y, dx = value_and_pullback(x, QuantSpec(bits, scheme), jnp.ones(3))
    assert np.all(np.isfinite(y)) and np.all(np.isfinite(dx))
    if scale < 1:  # for larger scales tanh is flat
        assert np.any(dx != 0)


def test_an_empty_tensor_is_returned():
    assert fake_quantize(jnp.zeros((0, 3)), QuantSpec(4)).shape == (0, 3)


def test_bfloat16_in_bfloat16_out_rounded_in_float32():
    x = jnp.asarray(normal((64,)), jnp.bfloat16)
    y = fake_quantize(x, QuantSpec(8))
    wide = fake_quantize(x.astype(jnp.float32), QuantSpec(8))
    assert y.dtype == jnp.bfloat16
    assert np.array_equal(y, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("scheme", ["dorefa", "ewgs"])
def test_unquantize_in_the_unit_interval_keeps_the_order(scheme):
    value = jnp.linspace(0.05, 0.95, 19)
    x = unquantize(value, QuantSpec(8, scheme))
    unrounded = _oracles.unrounded(x, 8, scheme)  # the scheme stretches the tensor to reach 0 and 1
    expected = 0.5 + (np.asarray(value) - 0.5) / 0.9
    assert relative_error(unrounded, expected) <= 1e-5


@pytest.mark.parametrize("scheme, bits", [("dorefa_sym", 6), ("qnn", 8), ("dorefa_sym", 1)])
def test_unquantize_inverts_the_reparametrisation(scheme, bits):
    value = normal((40,), scale=0.2)
    x = unquantize(jnp.asarray(value), QuantSpec(bits, scheme))
    assert relative_error(_oracles.unrounded(x, bits, scheme), value) <= 2e-6


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fake_quantize(jnp.arange(4), QuantSpec(4)), "`x` must have a floating-point dtyp"),
        (lambda: fake_quantize(jnp.ones(4), 4), "`spec` must be QuantSpec; got 4"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("scale, is_equal", [(0.1, True), (100.0, False)])
def test_micro_batch_gradients_average_to_the_full_gradient_unless_clamped(scale, is_equal):
    """The condition that `TrainSpec.accumulation_steps` documents."""
    w = jnp.linspace(-1.0, 1.0, 12)
    x = scale * jnp.asarray(np.random.default_rng(0).normal(size=(8, 12)), jnp.float32)

    def gradient(x):
        return jax.grad(lambda w: jnp.mean(x @ fake_quantize(w, QuantSpec(4))))(w)

    parts = (gradient(x[:4]) + gradient(x[4:])) / 2
    assert (relative_error(parts, np.asarray(gradient(x))) < 1e-6) == is_equal
