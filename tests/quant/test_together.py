"""Tensors that are quantised together have the values and gradients of each alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import QuantSpec, fake_quantize
from mlg_jax.quant import fake_quantize_together
from mlg_jax.quant._spec import MIN_BITS

SHAPES = ((3, 5, 7), (1,), (130,), (64, 9))


def tensors(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(10.0**i * rng.normal(size=s), dtype) for i, s in enumerate(SHAPES)]


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "scheme, bits", [(s, b) for s, least in MIN_BITS.items() for b in (1, 3, 8) if b >= least]
)
def test_values(scheme, bits):
    spec = QuantSpec(None if scheme == "tanh_norm" else bits, scheme)
    expected = [fake_quantize(x, spec) for x in tensors()]
    assert_equal(fake_quantize_together(tensors(), spec), expected)


@pytest.mark.parametrize("scheme", ["dorefa_sym", "dorefa"])
def test_gradients(scheme):
    spec, xs = QuantSpec(3, scheme), tensors()
    weights = [jnp.asarray(np.random.default_rng(1).normal(size=s), jnp.float32) for s in SHAPES]

    def loss(quantize):
        return lambda xs: sum(jnp.sum(w * q) for w, q in zip(weights, quantize(xs), strict=True))

    each = jax.grad(loss(lambda xs: [fake_quantize(x, spec) for x in xs]))(xs)
    together = jax.grad(loss(lambda xs: fake_quantize_together(xs, spec)))(xs)
    for a, b in zip(together, each, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * float(jnp.max(jnp.abs(b))))


def test_half_precision_keeps_its_type():
    found = fake_quantize_together(tensors(jnp.bfloat16), QuantSpec(4))
    assert_equal(found, [fake_quantize(x, QuantSpec(4)) for x in tensors(jnp.bfloat16)])


def test_partial_quantisation_rounds_its_share():
    rng = np.random.default_rng(2)
    xs = [jnp.asarray(rng.normal(size=n), jnp.float32) for n in (4000, 3000)]
    spec = QuantSpec(3, ratio=0.25)
    full = fake_quantize_together(xs, QuantSpec(3))
    some = fake_quantize_together(xs, spec, key=jax.random.key(0))
    for a, b in zip(some, full, strict=True):
        assert np.mean(np.asarray(a) == np.asarray(b)) == pytest.approx(0.25, abs=0.05)


def test_none_and_one():
    assert fake_quantize_together([], QuantSpec(3)) == []
    (x,) = fake_quantize_together([jnp.ones(3)], QuantSpec(None))
    assert_equal([x], [jnp.ones(3)])
