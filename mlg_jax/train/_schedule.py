"""Learning rates as functions of the number of updates."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlg_jax._checks import check_integer
from mlg_jax.train._spec import ScheduleSpec

Schedule = Callable[[jax.Array | int], jax.Array]
_Shape = Callable[[jax.Array], jax.Array]


def make_schedule(spec: ScheduleSpec, *, num_epochs: int, steps_per_epoch: int) -> Schedule:
    """The schedule of a run of `num_epochs * steps_per_epoch` updates.

    Let `T` be the number of updates, `W` the number of warm-up updates, `P` the update of the peak,
    `f` the final and `i` the initial fraction, and `c(a, b, s) = b + (a - b) (1 + cos(pi s)) / 2`.
    Update `t` (from 0) uses the peak learning rate times

    - `constant`: 1;
    - `cosine`: `c(1, f, t / T)`;
    - `warmup_cosine`: `(t + 1) / W` for `t < W` (so the first update is not zero), then
      `c(1, f, (t - W) / (T - W))`;
    - `exponential`: `factor ** (t // steps_per_epoch)`;
    - `one_cycle`: `c(i, 1, t / P)` up to `P`, then `c(1, f, (t - P) / (T - P))`;
    - `triangular`: the same with straight lines, `i + (1 - i) t / P`, then
      `1 + (f - 1) (t - P) / (T - P)`.

    After `T` updates the learning rate stays constant.

    Args:
        spec: the schedule and its parameters.
        num_epochs: number of epochs, >= 1.
        steps_per_epoch: updates per epoch, >= 1.

    Returns:
        A function from the number of an update to a float32 scalar; it can be traced.

    Raises:
        TypeError, ValueError: a count is not positive, or the warm-up is as long as the run.

    Reference: SGDR, https://arxiv.org/abs/1608.03983; one-cycle, https://arxiv.org/abs/1708.07120.
    """
    check_integer("num_epochs", num_epochs, 1)
    check_integer("steps_per_epoch", steps_per_epoch, 1)
    num_steps = num_epochs * steps_per_epoch
    warmup_steps = round(spec.warmup_epochs * steps_per_epoch)
    if spec.name == "warmup_cosine" and warmup_steps >= num_steps:
        raise ValueError(
            f"`warmup_epochs` must be shorter than the run of {num_epochs} epochs; "
            f"got {spec.warmup_epochs!r}."
        )
    shapes: dict[str, _Shape] = {
        "constant": lambda t: jnp.float32(1.0),
        "cosine": lambda t: _cosine(1.0, spec.final_fraction, t / num_steps),
        "warmup_cosine": lambda t: _warmup_cosine(
            t, warmup_steps, num_steps, final=spec.final_fraction
        ),
        # The half step protects the floor from a quotient that is rounded down.
        "exponential": lambda t: (
            jnp.float32(spec.factor_per_epoch) ** jnp.floor((t + 0.5) / steps_per_epoch)
        ),
        "one_cycle": lambda t: _one_cycle(t, num_steps, spec),
        "triangular": lambda t: jnp.interp(
            t,
            jnp.array([0.0, spec.peak_fraction * num_steps, num_steps]),
            jnp.array([spec.initial_fraction, 1.0, spec.final_fraction]),
        ),
    }
    shape = shapes[spec.name]

    def schedule(count: jax.Array | int) -> jax.Array:
        time = jnp.minimum(jnp.asarray(count, jnp.float32), jnp.float32(num_steps))
        return spec.learning_rate * shape(time)

    return schedule


def _cosine(start: float, end: float, share: jax.Array) -> jax.Array:
    return end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(share, 0.0, 1.0)))


def _warmup_cosine(
    time: jax.Array, warmup_steps: int, num_steps: int, *, final: float
) -> jax.Array:
    rise = (time + 1.0) / max(warmup_steps, 1)
    fall = _cosine(1.0, final, (time - warmup_steps) / (num_steps - warmup_steps))
    return jnp.where(time < warmup_steps, rise, fall)


def _one_cycle(time: jax.Array, num_steps: int, spec: ScheduleSpec) -> jax.Array:
    peak_step = spec.peak_fraction * num_steps
    rise = _cosine(spec.initial_fraction, 1.0, time / peak_step)
    fall = _cosine(1.0, spec.final_fraction, (time - peak_step) / (num_steps - peak_step))
    return jnp.where(time < peak_step, rise, fall)
