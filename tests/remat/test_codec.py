"""Each codec on its own: decoded values, rounding statistics and argument checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax.remat import BitmapCodec, Codec, GroupCodec, Identity, _group_quant

NEVER = jnp.array(False)


def activation(shape=(6, 50, 7), seed=0, dtype=jnp.float32):
    x = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(np.maximum(x, 0), dtype)


def round_trip(codec, x, seed=0):
    return jax.jit(lambda x, key: codec.decode(codec.encode(x, key), NEVER))(
        x, jax.random.key(seed)
    )


@pytest.mark.parametrize("codec", [Codec(), Identity(), BitmapCodec(0.6)], ids=repr)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["fp32", "bf16"])
def test_exact_codecs_return_every_bit(codec, dtype):
    x = activation(dtype=dtype).at[0, 0, :3].set(jnp.array([-0.0, jnp.nan, jnp.inf], dtype))
    got = round_trip(codec, x)
    assert got.dtype == dtype
    kind = jnp.uint32 if dtype == jnp.float32 else jnp.uint16
    np.testing.assert_array_equal(got.view(kind), x.view(kind))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_unbiased_and_within_a_step(bits):
    """The mean over 4,000 keys lies within 5 standard errors of the stored array."""
    x = activation((3, 40))
    codec = GroupCodec(bits, group_size=32)
    decode = jax.jit(jax.vmap(lambda key: codec.decode(codec.encode(x, key), NEVER)))
    samples = np.asarray(decode(jax.random.split(jax.random.key(0), 4000)), np.float64)
    exact = np.asarray(x, np.float64)
    step = exact.max() / (2**bits - 1)
    assert np.max(np.abs(samples - exact)) <= step * 1.001
    error, spread = samples.mean(0) - exact, samples.std(0) / 4000**0.5
    assert np.all(np.abs(error) <= 5 * spread + 1e-6 * exact.max())
    assert np.median(spread[exact > 0]) > 0
    np.testing.assert_array_equal(samples[:, exact == 0], 0.0)


def test_padding_does_not_widen_the_last_group():
    x = jnp.linspace(100.0, 101.0, 40)  # the second group of 32 has 8 entries and padding
    error = np.abs(np.asarray(round_trip(GroupCodec(4, group_size=32), x) - x))[32:]
    assert error.max() <= (x[39] - x[32]) / 15 * 1.01


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_largest_code_does_not_run_into_its_neighbour(monkeypatch, bits):
    """With the largest noise below 1 the sum rounds to `2**bits`, one more than a code holds."""
    largest = np.nextafter(np.float32(1), np.float32(0))
    monkeypatch.setattr(_group_quant, "_uniform", lambda key, shape: jnp.full(shape, largest))
    x = jnp.tile(jnp.array([0.0, 1.0]), 16)
    codes = _group_quant.quantize(x, bits, 32, jax.random.key(0))
    np.testing.assert_allclose(_group_quant.dequantize(codes), x, rtol=1e-6)


def test_rounding_noise_differs_from_entry_to_entry():
    """Rows and columns do not share random numbers: neighbours are hardly correlated."""
    x = jnp.full((64, 256), 0.5).at[:, 0].set(0.0).at[:, 1].set(1.0)
    noise = np.asarray(round_trip(GroupCodec(2), x))[:, 2:] - 0.5
    assert abs(noise.mean()) < 0.02
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(ValueError, match="`capacity` must be"):
        BitmapCodec(0.0)
    with pytest.raises(ValueError, match=r"`bits` must be one of \[2, 4, 8\]; got 3"):
        GroupCodec(3)
    with pytest.raises(ValueError, match="`group_size` must be a multiple of 16; got 20"):
        GroupCodec(4, group_size=20)
    with pytest.raises(TypeError, match="`group_size` must be an integer"):
        GroupCodec(4, group_size=2.0)
