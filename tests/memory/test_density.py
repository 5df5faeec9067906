"""Running density statistics against NumPy on all densities at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax.memory import (
    NUM_BINS,
    densities_to_markdown,
    init_densities,
    summarize_densities,
    update_densities,
)
from tests._tolerances import ELEMENTWISE

NAMES = ("stem/conv", "stem/norm", "stage1/conv")  # not in alphabetical order
KINDS = {"stem/conv": "conv", "stem/norm": "norm", "stage1/conv": "conv"}


def record(num_batches, spread=0.2):
    generator = np.random.default_rng(0)
    return 0.5 + spread * (generator.random((num_batches, len(NAMES))) - 0.5)


def accumulate(values):
    stats = init_densities(NAMES)
    step = jax.jit(update_densities)
    for row in values.astype(np.float32):
        stats = step(stats, dict(zip(reversed(NAMES), reversed(row), strict=True)))
    return stats


def assert_rows(rows, names, columns, num_batches, rtol=1e2 * ELEMENTWISE):
    assert [row.name for row in rows] == list(names)
    for row, column in zip(rows, columns, strict=True):
        column = np.asarray(column, np.float32).astype(np.float64)
        actual = (row.mean, row.std, row.minimum, row.maximum)
        expected = (column.mean(), column.std(), column.min(), column.max())
        np.testing.assert_allclose(actual, expected, rtol=rtol)
        assert row.num_batches == num_batches
        counts, _ = np.histogram(column, bins=NUM_BINS, range=(0, 1))
        assert row.histogram == tuple(counts)


@pytest.mark.parametrize("num_batches", [1, 2, 400])
def test_statistics_per_name(num_batches):
    values = record(num_batches)
    assert_rows(summarize_densities(accumulate(values)), NAMES, values.T, num_batches)


def test_statistics_per_kind_pool_their_names():
    values = record(50)
    rows = summarize_densities(accumulate(values), KINDS)
    assert_rows(rows, ("conv", "norm"), [values[:, [0, 2]], values[:, 1]], 50)


def test_a_small_deviation_survives_float32():
    """float32 resolves means to 3e-8, hence a deviation of 3e-5 to 1e-3.

    The difference of sums of squares would not resolve it at all.
    """
    values = record(400, spread=1e-4)
    assert_rows(summarize_densities(accumulate(values)), NAMES, values.T, 400, rtol=1e-3)


def test_carried_through_scan():
    values = jnp.asarray(record(20), jnp.float32)

    def step(stats, row):
        return update_densities(stats, dict(zip(NAMES, row, strict=True))), None

    stats, _ = jax.lax.scan(step, init_densities(NAMES), values)
    assert_rows(summarize_densities(stats), NAMES, np.asarray(values).T, 20)


def test_nan_shows_in_the_statistics():
    stats = update_densities(init_densities(["a", "b"]), {"a": jnp.nan, "b": 0.5})
    first, second = summarize_densities(stats)
    assert np.isnan(first.mean) and np.isnan(first.minimum) and second.mean == 0.5
    assert sum(first.histogram) == 0 and sum(second.histogram) == 1


def test_densities_0_and_1_fall_into_the_outer_bins():
    stats = update_densities(init_densities(["a", "b"]), {"a": 1.0, "b": 0.0})
    first, second = summarize_densities(stats)
    assert first.histogram[-1] == second.histogram[0] == 1


def test_table():
    table = densities_to_markdown(summarize_densities(accumulate(np.full((3, 3), 0.25))))
    assert table.splitlines()[2] == "| stem/conv | 0.2500 | 0.0000 | 0.2500 | 0.2500 | 3 |"
    assert len(table.splitlines()) == 5


@pytest.mark.bad_input
def test_bad_input():
    for names in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="`names` must be one or more different names; got"):
            init_densities(names)
    stats = init_densities(["a", "b"])
    with pytest.raises(ValueError, match=r"the names \['a', 'b'\]; got \['a', 'c'\]"):
        update_densities(stats, {"a": 0.5, "c": 0.5})
    with pytest.raises(ValueError, match="`stats` must hold at least one batch; got none"):
        summarize_densities(stats)
    stats = update_densities(stats, {"a": 0.5, "b": 0.5})
    with pytest.raises(ValueError, match=r"a kind for every name; got none for \['b'\]"):
        summarize_densities(stats, {"a": "conv"})
