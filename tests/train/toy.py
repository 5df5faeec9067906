"""A two-layer network with batch statistics, seeded data, and a run that can be a process.

`python -m tests.train.toy DIR [--epochs N] ...` trains it; the tests kill such processes.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mlg_jax import losses, train

FEATURES, HIDDEN, CLASSES, ROWS = 6, 16, 3, 16
STEPS_PER_EPOCH = 4


def make_params(hidden=HIDDEN):
    rng = np.random.default_rng(1)
    return {
        "first": {
            "kernel": jnp.asarray(rng.normal(size=(FEATURES, hidden)) * 0.5, jnp.float32),
            "bias": jnp.zeros(hidden),
        },
        "second": {
            "kernel": jnp.asarray(rng.normal(size=(hidden, CLASSES)) * 0.3, jnp.float32),
            "bias": jnp.zeros(CLASSES),
        },
    }


def make_model_state():
    return {"mean": jnp.zeros(FEATURES)}


def make_loss(*, dropout=0.0, label_smoothing=0.0):
    """A loss function for `train`; the entry "scale" of a batch multiplies the loss."""

    def loss_fn(params, model_state, batch, key, is_training):
        x = batch["x"]
        mean = model_state["mean"]
        if is_training:
            mean = 0.9 * mean + 0.1 * jnp.mean(x, axis=0)
        hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
        if is_training and dropout:
            kept = jax.random.bernoulli(key, 1 - dropout, hidden.shape)
            hidden = hidden * kept / (1 - dropout)
        logits = hidden @ params["second"]["kernel"] + params["second"]["bias"]
        kwargs = {"logits": logits, "labels": batch["y"], "mask": batch.get("mask")}
        loss = losses.cross_entropy(label_smoothing=label_smoothing, **kwargs)
        return loss, ({"accuracy": losses.accuracy(**kwargs)}, {"mean": mean})

    return loss_fn


def make_batch(index, rows=ROWS):
    rng = np.random.default_rng(100 + index)
    x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    return {"x": x, "y": (x[:, 0] > 0).astype(np.int32) + (x[:, 1] > 0.5)}


def make_batches(*, delay_seconds=0.0, poison=None, num_batches=STEPS_PER_EPOCH):
    """Batches of an epoch; `poison` maps the number of a step to a function of its batch."""

    def batches(epoch, start):
        for index in range(start, num_batches):
            step = epoch * STEPS_PER_EPOCH + index
            batch = make_batch(step)
            if poison and step in poison:
                batch = poison[step](batch)
            time.sleep(delay_seconds)
            yield batch

    return batches


def eval_batches():
    """Two batches; the last one is padded with masked rows."""
    mask = np.ones(ROWS, bool)
    yield {**make_batch(9001), "mask": mask}
    padded = {**make_batch(9002), "mask": mask & (np.arange(ROWS) < 5)}
    padded["x"][5:] = np.nan
    yield padded


def make_task(**overrides):
    values = {
        "loss_fn": make_loss(dropout=0.2),
        "batches": make_batches(),
        "steps_per_epoch": STEPS_PER_EPOCH,
        "eval_batches": eval_batches,
        **overrides,
    }
    return train.Task(**values)


def make_spec(**overrides):
    values = {
        "num_epochs": 3,
        "log_every_steps": 3,
        "checkpoint_every_steps": 3,
        "optimizer": train.OptimizerSpec(name="adamw", weight_decay=1e-2),
        "schedule": train.ScheduleSpec(name="cosine", learning_rate=1e-2),
        **overrides,
    }
    return train.TrainSpec(**values)


def run(task=None, spec=None, **overrides):
    values = {
        "params": make_params(),
        "model_state": make_model_state(),
        "key": jax.random.key(7),
        **overrides,
    }
    return train.train(task or make_task(), spec or make_spec(), **values)


def flat(tree):
    """All arrays of a tree by name, on the host; typed keys as raw data."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path): np.asarray(
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        )
        for path, leaf in leaves
    }


def assert_equal(left, right):
    """Asserts that two trees are equal bit for bit."""
    left, right = flat(left), flat(right)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work_dir")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--signal", choices=("SIGTERM", "SIGKILL"))
    parser.add_argument("--at", type=int, default=-1)
    parser.add_argument("--process", type=int)
    parser.add_argument("--port")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    num_processes = 1
    if args.process is not None:
        num_processes = 2
        train.initialize_distributed(
            coordinator_address=f"127.0.0.1:{args.port}",
            num_processes=num_processes,
            process_id=args.process,
        )

    def shoot(batch):
        os.kill(os.getpid(), signal.Signals[args.signal])
        return batch

    whole = make_batches(delay_seconds=args.delay, poison={args.at: shoot} if args.signal else {})
    share = slice(None)
    if num_processes > 1:
        half = ROWS // 2
        share = slice(args.process * half, (args.process + 1) * half)

    def rows_of(batches):
        for batch in batches:
            yield {name: values[share] for name, values in batch.items()}

    task = make_task(
        loss_fn=make_loss(dropout=0.2 if num_processes == 1 else 0.0),
        batches=lambda epoch, start: rows_of(whole(epoch, start)),
        eval_batches=lambda: rows_of(eval_batches()),
    )
    try:
        result = run(task, make_spec(num_epochs=args.epochs), work_dir=args.work_dir)
    except train.TrainingInterrupted as interruption:
        logging.warning("%s", interruption)
        sys.exit(interruption.exit_code)
    if jax.process_index() == 0:
        final = {k: v for k, v in flat(result.state).items()}
        np.savez(Path(args.work_dir) / "final.npz", **final)
        Path(args.work_dir, "final.json").write_text(json.dumps(result.metrics))


if __name__ == "__main__":
    main()
