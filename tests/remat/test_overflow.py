"""Fill levels of bitmaps, and NaN cotangents after an overflow on any device."""

import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import pack
from mlg_jax.remat import ResidualPolicy
from mlg_jax.remat._overflow import overflow_of, poison


def overflow(counts):
    """The fill level of bitmaps of 100 entries with capacity 1/2, given the counts per device."""
    return overflow_of(pack(jnp.zeros(100), capacity=0.5), jnp.array(counts))


@pytest.mark.parametrize(
    "counts, overflowed, density",
    [([50, 10], False, 0.5), ([51, 10], True, 0.51), ([0, 100], True, 1.0), ([0, 0], False, 0.0)],
)
def test_the_fullest_device_decides(counts, overflowed, density):
    found = overflow(counts)
    assert bool(found.overflowed) is overflowed and found.capacity == 0.5
    np.testing.assert_allclose(found.density, density, rtol=1e-6)


def test_one_overflow_makes_all_cotangents_nan():
    cotangents = {"a": jnp.ones(3), "b": jnp.ones((2, 2), jnp.bfloat16)}
    kept = poison(cotangents, [overflow([50]), overflow([1])])
    lost = poison(cotangents, [overflow([50]), overflow([51])])
    for name, value in cotangents.items():
        np.testing.assert_array_equal(kept[name], value)
        assert np.all(np.isnan(lost[name])) and lost[name].dtype == value.dtype


@pytest.mark.bad_input
def test_unknown_on_overflow_is_refused():
    message = r"`on_overflow` must be one of \['silent', 'warn'\]; got 'raise'"
    with pytest.raises(ValueError, match=message):
        ResidualPolicy(on_overflow="raise")
