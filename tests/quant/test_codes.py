"""Integer codes decode to the bits of `fake_quantize` in every compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import QuantSpec, fake_quantize
from mlg_jax.quant import MIN_BITS, decode, encode

CASES = [
    (scheme, bits)
    for scheme in ("dorefa_sym", "dorefa", "dorefa_pos", "qnn", "ewgs")
    for bits in (1, 2, 3, 5, 8, 9, 16)
    if bits >= MIN_BITS[scheme]
]


@pytest.mark.parametrize("scheme, bits", CASES)
def test_decoding_is_bit_exact(scheme, bits):
    spec = QuantSpec(bits, scheme)
    for seed in range(3):
        x = jnp.asarray(np.random.default_rng(seed).normal(size=(9, 21)), jnp.float32)
        for wrap in (lambda f: f, jax.jit):
            expected = wrap(lambda x: fake_quantize(x, spec))(x)
            tensor = wrap(lambda x: encode(x, spec))(x)
            assert np.array_equal(wrap(decode)(tensor), expected)


@pytest.mark.parametrize("scheme, bits", CASES)
def test_codes_fit_their_width(scheme, bits):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 7)), jnp.float32)
    tensor = encode(x, QuantSpec(bits, scheme))
    assert tensor.codes.dtype == (jnp.uint8 if bits <= 8 else jnp.uint16)
    assert tensor.codes.shape == x.shape
    ends = int(tensor.codes.min()), int(tensor.codes.max())
    assert ends[1] < 2**bits and (ends[0] == 0 or ends[1] == 2**bits - 1)
    assert tensor.num_bits == 350 * bits


def test_decoding_restores_the_dtype():
    x = jnp.asarray(np.random.default_rng(0).normal(size=40), jnp.bfloat16)
    spec = QuantSpec(8)
    decoded = decode(encode(x, spec))
    assert decoded.dtype == jnp.bfloat16 and np.array_equal(decoded, fake_quantize(x, spec))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "x, spec, error, message",
    [
        (jnp.arange(3), QuantSpec(4), TypeError, "`x` must have a floating-point dtype; got int32"),
        (jnp.ones(3), QuantSpec(), ValueError, "`spec` must have `bits`"),
        (jnp.ones((0, 2)), QuantSpec(4), ValueError, r"`x` must not be empty; got shape \(0, 2\)"),
        (jnp.array([0.0, 1.0]), QuantSpec(1), ValueError, "no exact zeros .* got 1 of 2"),
    ],
)
def test_bad_input(x, spec, error, message):
    with pytest.raises(error, match=message):
        encode(x, spec)
