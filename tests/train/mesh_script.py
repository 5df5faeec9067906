"""Compares four simulated devices with one; `test_processes.py` runs it as a process."""

import jax
import numpy as np

from mlg_jax import train
from tests.train import toy

SCHEDULE = train.make_schedule(
    train.ScheduleSpec(learning_rate=0.5), num_epochs=1, steps_per_epoch=1
)


def run(num_devices, batches, *, accumulation_steps=1):
    """Losses of all steps and gradients of the first, with plain gradient descent."""
    mesh = train.make_mesh(jax.devices()[:num_devices])
    optimizer = train.make_optimizer(train.OptimizerSpec(name="sgd", momentum=0.0), SCHEDULE)
    state = train.create_state(
        params=toy.make_params(),
        model_state=toy.make_model_state(),
        optimizer=optimizer,
        key=jax.random.key(3),
    )
    step = train.make_train_step(
        toy.make_loss(dropout=0.3), optimizer, mesh, accumulation_steps=accumulation_steps
    )
    state, start, losses = train.replicate(state, mesh), toy.flat(state.params), []
    grads = {}
    for batch in batches:
        sharded = train.shard_batch(batch, mesh, num_parts=accumulation_steps)
        assert len(sharded["x"].sharding.device_set) == num_devices
        assert sharded["x"].addressable_shards[0].data.shape[0] == toy.ROWS // num_devices
        state, report = step(state, sharded)
        losses.append(report.sums.means()["loss"])
        grads = grads or {k: (start[k] - v) / 0.5 for k, v in toy.flat(state.params).items()}
    return np.array(losses), grads, state


def main():
    assert jax.device_count() == 4
    plain = [toy.make_batch(i) for i in range(3)]
    # Two of the devices hold padding rows.
    masked = [{**b, "mask": np.arange(toy.ROWS) < 7} for b in plain]
    for batches, parts in ((plain, 1), (masked, 2)):
        one, four = (run(n, batches, accumulation_steps=parts) for n in (1, 4))
        np.testing.assert_allclose(four[0], one[0], rtol=1e-5)
        for name, grad in one[1].items():
            atol = 1e-5 * np.abs(grad).max()
            np.testing.assert_allclose(four[1][name], grad, atol=atol, err_msg=name)
        mean = four[2].model_state["mean"]
        np.testing.assert_allclose(mean, one[2].model_state["mean"], rtol=1e-4, atol=1e-6)
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(four[2]))

    poisoned = dict(plain[0], x=plain[0]["x"].copy())
    poisoned["x"][-1, 0] = np.nan  # on the last device only, but all devices must stop
    state = run(4, [poisoned])[2]
    assert all(bool(s.data) for s in state.is_loss_broken.addressable_shards)
    toy.assert_equal(state.params, toy.make_params())

    try:
        train.shard_batch(toy.make_batch(0, rows=18), train.make_mesh())
    except ValueError as error:
        assert "multiple of 4 rows in each process (4 devices x 1 micro-batches)" in str(error)
        assert "got 18" in str(error)
    else:
        raise AssertionError("18 rows over 4 devices must be refused")


if __name__ == "__main__":
    main()
