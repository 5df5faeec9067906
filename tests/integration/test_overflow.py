"""A batch with more non-zeros than room: discarded, repeated exactly, counted, given room for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlg_jax
from mlg_jax.remat import BitmapCodec, ResidualPolicy
from mlg_jax.train import NonFiniteError, OptimizerSpec, ScheduleSpec, Task, TrainSpec, train

DENSE_STEPS = (2, 5)  # whose activations have no zeros
NUM_STEPS = 8


def block(params, x):
    return jax.nn.relu(jnp.tanh(x @ params["in"]) @ params["out"])


@jax.custom_vjp
def spoil(x, is_spoilt):
    """x, with a gradient of NaN where told."""
    return x


spoil.defvjp(
    lambda x, is_spoilt: (x, is_spoilt),
    lambda is_spoilt, ct: (jnp.where(is_spoilt, jnp.nan, ct), None),
)


def make_loss(capacity, is_told=False):
    # Silent: the loop repeats what does not fit.
    policy = ResidualPolicy(BitmapCodec(capacity), on_overflow="silent")
    fn = mlg_jax.checkpoint(block, policy=policy)

    def loss_fn(params, state, batch, key, train):
        if is_told:
            is_dense = jnp.all(batch["x"] != 0)
            params = jax.tree.map(lambda p: spoil(p, is_dense), params)
        loss = jnp.mean((fn(params, batch["x"]) - batch["y"]) ** 2)
        return loss, ({}, state)

    return loss_fn


def batches(epoch, start):
    for step in range(start, NUM_STEPS):
        rng = np.random.default_rng(step)
        x = rng.normal(size=(16, 12)).astype(np.float32)
        x = np.abs(x) + 0.1 if step in DENSE_STEPS else np.maximum(x, 0)
        yield {"x": x, "y": rng.normal(size=(16, 12)).astype(np.float32)}


def run(loss_fn, num_epochs=1, **options):
    rng = np.random.default_rng(0)
    params = {k: rng.normal(size=(12, 12)).astype(np.float32) / 3 for k in ("in", "out")}
    options = {"exact_loss_fn": make_loss(1.0), **options}
    task = Task(loss_fn=loss_fn, batches=batches, steps_per_epoch=NUM_STEPS, **options)
    spec = TrainSpec(
        num_epochs=num_epochs,
        optimizer=OptimizerSpec(name="adamw"),
        schedule=ScheduleSpec(name="constant", learning_rate=0.01),
    )
    result = train(task, spec, params=params, model_state={}, key=jax.random.key(0))
    return jax.device_get(result.state)


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_forced_overflows_change_no_bit():
    """Against a run without bitmaps that is told at which steps to take the exact one."""
    packed = run(make_loss(0.7))
    told = run(make_loss(1.0, is_told=True))
    assert packed.num_overflows == told.num_overflows == len(DENSE_STEPS)
    assert packed.step == NUM_STEPS
    assert_same_bits(packed.params, told.params)
    assert_same_bits(packed.opt_state, told.opt_state)


def test_recalibration_makes_room():
    calls = []

    def on_overflow(state, batch):
        calls.append(float(jnp.mean(batch["x"] != 0)))
        return make_loss(1.0)

    state = run(make_loss(0.7), on_overflow=on_overflow)
    assert calls == [1.0] and state.num_overflows == 1


def test_the_loss_may_change_after_every_epoch_but_the_last():
    calls = []

    def on_epoch_end(state, batch):
        calls.append((int(state.step), float(jnp.mean(batch["x"] != 0))))
        return make_loss(1.0)

    state = run(make_loss(0.7), on_epoch_end=on_epoch_end, num_epochs=3)
    last = next(batches(0, NUM_STEPS - 1))["x"]
    assert calls == [(NUM_STEPS * i, np.mean(last != 0, dtype=np.float32)) for i in (1, 2)]
    assert state.num_overflows == len(DENSE_STEPS)  # of the first epoch only


def test_without_an_exact_loss_it_stops():
    with pytest.raises(NonFiniteError, match=f"step {DENSE_STEPS[0]}"):
        run(make_loss(0.7), exact_loss_fn=None)
