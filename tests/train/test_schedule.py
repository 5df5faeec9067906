"""Schedules against float64 NumPy definitions, at every update of a run."""

import jax
import numpy as np
import pytest

from mlg_jax.train import ScheduleSpec, make_schedule

EPOCHS, LENGTH = 10, 7
STEPS = EPOCHS * LENGTH
PEAK = 0.3
TIMES = np.arange(STEPS + 5, dtype=np.float64)
CLIPPED = np.minimum(TIMES, STEPS)


def cosine(start, end, share):
    return end + (start - end) * (1 + np.cos(np.pi * np.clip(share, 0, 1))) / 2


ORACLES = {
    "constant": ({}, np.ones_like(TIMES)),
    "cosine": ({"final_fraction": 0.1}, cosine(1, 0.1, CLIPPED / STEPS)),
    "warmup_cosine": (
        {"warmup_epochs": 1.5, "final_fraction": 0.2},
        np.where(CLIPPED < 10, (CLIPPED + 1) / 10, cosine(1, 0.2, (CLIPPED - 10) / (STEPS - 10))),
    ),
    "exponential": ({"factor_per_epoch": 0.9}, 0.9 ** (CLIPPED // LENGTH)),
    "one_cycle": (  # the peak is between two updates
        {"initial_fraction": 0.1, "peak_fraction": 0.41, "final_fraction": 0.01},
        np.where(
            CLIPPED < 28.7,
            cosine(0.1, 1, CLIPPED / 28.7),
            cosine(1, 0.01, (CLIPPED - 28.7) / 41.3),
        ),
    ),
}


@pytest.mark.parametrize("name", ORACLES)
def test_schedules_against_oracles(name):
    kwargs, expected = ORACLES[name]
    spec = ScheduleSpec(name=name, learning_rate=PEAK, **kwargs)
    schedule = make_schedule(spec, num_epochs=EPOCHS, steps_per_epoch=LENGTH)
    values = jax.vmap(schedule)(np.arange(len(TIMES), dtype=np.int32))
    # Fractions of the run are rounded to float32; the slope of the cosine is up to about pi.
    np.testing.assert_allclose(values, PEAK * expected, atol=1e-6 * PEAK)


def test_the_published_recipes():
    """Factor 0.98 per epoch over 200 epochs; and cosine to 0."""
    decay = ScheduleSpec(name="exponential", learning_rate=2e-3, factor_per_epoch=0.98)
    schedule = make_schedule(decay, num_epochs=200, steps_per_epoch=391)
    np.testing.assert_allclose(schedule(391 * 199), 2e-3 * 0.98**199, rtol=1e-5)
    np.testing.assert_allclose(schedule(391 * 150 - 1), 2e-3 * 0.98**149, rtol=1e-5)
    cosine_spec = ScheduleSpec(name="cosine", learning_rate=2e-3)
    assert make_schedule(cosine_spec, num_epochs=2, steps_per_epoch=5)(10) == 0.0


def test_no_warmup_starts_at_the_peak():
    spec = ScheduleSpec(name="warmup_cosine", learning_rate=PEAK)
    schedule = make_schedule(spec, num_epochs=1, steps_per_epoch=9)
    np.testing.assert_allclose(schedule(0), PEAK, rtol=1e-6)


@pytest.mark.bad_input
def test_error_messages():
    spec = ScheduleSpec(name="warmup_cosine", warmup_epochs=3)
    with pytest.raises(ValueError, match="`warmup_epochs` must be shorter .* 3 epochs; got 3"):
        make_schedule(spec, num_epochs=3, steps_per_epoch=2)
    with pytest.raises(ValueError, match="`steps_per_epoch` must be .*; got 0"):
        make_schedule(ScheduleSpec(), num_epochs=3, steps_per_epoch=0)
