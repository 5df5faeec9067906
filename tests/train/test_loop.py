"""The loop: resuming, selecting the best, logging, stopping, and repeating overflowed steps."""

import itertools
import json
import logging
import os
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import train
from mlg_jax.train import Checkpointer, seal
from tests.train import toy

NUM_STEPS = 3 * toy.STEPS_PER_EPOCH


def spoil(batch):
    """Sets one entry of one row to NaN."""
    x = batch["x"].copy()
    x[3, 2] = np.nan
    return {**batch, "x": x}


def interrupt(number):
    def shoot(batch):
        os.kill(os.getpid(), number)
        return batch

    return shoot


def overflowing(loss_fn):
    """Imitates residuals beyond their capacity: NaN cotangents if the batch asks for them."""

    @jax.custom_vjp
    def poison(x, bad):
        return x

    poison.defvjp(lambda x, bad: (x, bad), lambda bad, ct: (jnp.where(bad, jnp.nan, ct), None))

    def fast(params, model_state, batch, key, is_training):
        kernel = poison(params["first"]["kernel"], batch["bad"].any())
        return loss_fn(
            {**params, "first": {**params["first"], "kernel": kernel}},
            model_state,
            batch,
            key,
            is_training,
        )

    return fast


def flagged(bad_steps):
    """Batches with the entry "bad"."""

    def batches(epoch, start):
        for index, batch in enumerate(toy.make_batches()(epoch, start), start=start):
            is_bad = epoch * toy.STEPS_PER_EPOCH + index in bad_steps
            yield {**batch, "bad": np.full(toy.ROWS, is_bad)}

    return batches


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("whole")
    return toy.run(work_dir=work_dir), train.read_metrics(work_dir)


def comparable(lines):
    """The metrics without the only one that depends on a clock."""
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def test_nothing_on_disk_trains_the_same(uninterrupted):
    toy.assert_equal(toy.run().state, uninterrupted[0].state)


def test_lines_tile_the_run(uninterrupted):
    result, lines = uninterrupted
    steps = [line["num_steps"] for line in lines if line["kind"] == "train"]
    assert sum(steps) == NUM_STEPS
    evals = [line for line in lines if line["kind"] == "eval"]
    assert [line["step"] for line in evals] == [4, 8, 12]
    assert evals[-1]["loss"] == result.metrics["loss"]
    best = max((line["accuracy"], line["step"]) for line in evals)
    assert (result.best_value, result.best_step) == best
    assert all(line.get("images_per_second", 1) > 0 for line in lines)


def test_a_line_has_the_rate_of_its_last_update(uninterrupted):
    """Update `t`, from 0, of a cosine from 0.01 to 0; the line of step `t + 1`."""
    found = {line["step"]: line for line in uninterrupted[1] if line["kind"] == "train"}
    assert {3, 4, 12} <= found.keys()
    for step, line in found.items():
        expected = 0.005 * (1 + np.cos(np.pi * (step - 1) / NUM_STEPS))
        assert line["learning_rate"] == pytest.approx(expected, rel=1e-4)


def test_images_per_second_leave_out_the_time_of_a_save(tmp_path, monkeypatch):
    """A clock that goes on by 1 second whenever it is read, and by 1,000 in each save."""
    seconds = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: float(next(seconds)))
    monkeypatch.setattr("mlg_jax.train._window.time", clock)

    def save(*args, **options):
        for _ in range(1000):
            next(seconds)

    monkeypatch.setattr(Checkpointer, "save", save)
    toy.run(work_dir=tmp_path)
    lines = [line for line in train.read_metrics(tmp_path) if line["kind"] == "train"]
    rates = [line["images_per_second"] / line["num_steps"] for line in lines[1:]]
    assert rates == [toy.ROWS] * len(rates)  # of the first line one step compiles


def test_epochs_are_evaluated_in_the_given_rhythm_and_the_last_one_always(tmp_path):
    toy.run(spec=toy.make_spec(eval_every_epochs=2), work_dir=tmp_path)
    evals = [line["step"] for line in train.read_metrics(tmp_path) if line["kind"] == "eval"]
    assert evals == [8, 12]


@pytest.mark.parametrize("at", [2, 4, 7])
def test_resume_after_a_signal_is_bit_exact(tmp_path, uninterrupted, at):
    """The signal arrives while batch `at` is loaded, within an epoch and at its end."""
    number = signal.SIGINT if at == 2 else signal.SIGTERM
    task = toy.make_task(batches=toy.make_batches(poison={at: interrupt(number)}))
    with pytest.raises(train.TrainingInterrupted, match="the run can be resumed") as caught:
        toy.run(task, work_dir=tmp_path)
    assert caught.value.step in (at, at + 1) and caught.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # handlers are restored
    result, (whole, lines) = toy.run(work_dir=tmp_path), uninterrupted
    toy.assert_equal(result.state, whole.state)
    assert (result.metrics, result.best_step) == (whole.metrics, whole.best_step)
    assert comparable(train.read_metrics(tmp_path)) == comparable(lines)


def test_resume_after_a_crash_drops_later_lines(tmp_path, uninterrupted):
    def crash(batch):
        raise OSError("the disk is gone")

    task = toy.make_task(batches=toy.make_batches(poison={11: crash}))
    with pytest.raises(OSError, match="the disk is gone"):
        toy.run(task, work_dir=tmp_path)
    path = tmp_path / train.METRICS_FILE
    with path.open("a") as stream:  # lines of later steps, the last one truncated
        stream.write('{"kind": "train", "step": 10, "num_steps": 1, "loss": 5}\n{"kind": "tr')
    result, (whole, lines) = toy.run(work_dir=tmp_path), uninterrupted
    toy.assert_equal(result.state, whole.state)
    assert comparable(train.read_metrics(tmp_path)) == comparable(lines)


def test_a_finished_run_is_not_run_again(tmp_path, uninterrupted):
    def no_batches(epoch, start):
        raise AssertionError("no batch is needed")

    toy.run(work_dir=tmp_path)
    result = toy.run(toy.make_task(batches=no_batches), work_dir=tmp_path)
    toy.assert_equal(result.state, uninterrupted[0].state)
    assert result.metrics == uninterrupted[0].metrics


def test_the_best_checkpoint_is_the_best_evaluated_one(tmp_path):
    """The validation metric rises, then falls; the middle epoch must be on disk."""
    scores = iter([0.2, 0.7, 0.1, 0.3, 0.3])

    def eval_batches():
        yield {**toy.make_batch(1), "score": np.full(toy.ROWS, next(scores), np.float32)}

    def eval_loss_fn(params, model_state, batch, key, is_training):
        assert not is_training
        return jnp.float32(0), ({"score": jnp.mean(batch["score"])}, model_state)

    task = toy.make_task(eval_batches=eval_batches, eval_loss_fn=eval_loss_fn)
    spec = toy.make_spec(num_epochs=5, best_metric="score")
    result = toy.run(task, spec, work_dir=tmp_path)
    assert result.best_step == 8 and result.best_value == pytest.approx(0.7)
    params, _, meta = train.load_variables(tmp_path / train.CHECKPOINT_DIR)
    assert meta["step"] == 8 and meta["epoch"] == 1
    # The cosine depends on the length of the run, so the same run is stopped after two epochs.
    partial = toy.make_task(batches=toy.make_batches(poison={8: interrupt(signal.SIGTERM)}))
    with pytest.raises(train.TrainingInterrupted):
        toy.run(partial, toy.make_spec(num_epochs=5), work_dir=tmp_path / "other")
    checkpoints = tmp_path / "other" / train.CHECKPOINT_DIR
    assert meta["step"] in [int(p.name) for p in checkpoints.iterdir()]
    (checkpoints / "9").rename(tmp_path / "nine")
    toy.assert_equal(train.load_variables(checkpoints, which="latest")[0], params)


def scored(scores):
    """A task whose validation metric takes the given values, one per evaluation."""
    values = iter(scores)

    def eval_batches():
        yield {**toy.make_batch(1), "score": np.full(toy.ROWS, next(values), np.float32)}

    def eval_loss_fn(params, model_state, batch, key, is_training):
        return jnp.float32(0), ({"score": jnp.mean(batch["score"])}, model_state)

    return {"eval_batches": eval_batches, "eval_loss_fn": eval_loss_fn}


@pytest.mark.parametrize(("mode", "scores"), [("max", (0.75, 0.25)), ("min", (0.25, 0.75))])
def test_the_best_survives_a_resume(tmp_path, mode, scores):
    """The best is from epoch 1; the run is stopped in epoch 2 and ends in a third process."""
    spec = toy.make_spec(best_metric="score", best_mode=mode)
    for at in (6, 9):
        poison = toy.make_batches(poison={at: interrupt(signal.SIGTERM)})
        with pytest.raises(train.TrainingInterrupted):
            toy.run(toy.make_task(batches=poison, **scored(scores)), spec, work_dir=tmp_path)
        scores = scores[1:]
    result = toy.run(toy.make_task(**scored([0.5])), spec, work_dir=tmp_path)
    best = 0.75 if mode == "max" else 0.25
    assert (result.best_step, result.best_value) == (4, best)
    assert train.load_variables(tmp_path / train.CHECKPOINT_DIR)[2]["step"] == 4


def test_the_evaluation_right_after_the_last_pruning_counts():
    """The first of three epochs is not sparse enough; the second ends with the final masks."""
    pruning = train.PruningSpec(final_sparsity=0.5, end_fraction=2 / 3, every_steps=4)
    spec = toy.make_spec(best_metric="score", pruning=pruning)
    result = toy.run(toy.make_task(**scored([0.75, 0.5, 0.25])), spec)
    assert (result.best_step, result.best_value) == (8, 0.5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_last_evaluation_is_not_swallowed(tmp_path, number, uninterrupted):
    """Nothing is left to stop: the signal has its previous effect, and the run is complete."""
    shots = iter([lambda _: None, lambda _: None, interrupt(number)])

    def eval_batches():
        next(shots)(None)
        yield from toy.eval_batches()

    task = toy.make_task(eval_batches=eval_batches)
    with pytest.raises(train.TrainingInterrupted), train.Interruptible("the stage"):
        toy.run(task, work_dir=tmp_path)
    assert comparable(train.read_metrics(tmp_path)) == comparable(uninterrupted[1])
    with Checkpointer(tmp_path / train.CHECKPOINT_DIR) as checkpoints:
        assert checkpoints.steps[-1] == NUM_STEPS


def test_other_devices_are_named_once(tmp_path, caplog, uninterrupted):
    task = toy.make_task(batches=toy.make_batches(poison={6: interrupt(signal.SIGTERM)}))
    with pytest.raises(train.TrainingInterrupted):
        toy.run(task, work_dir=tmp_path)
    (path,) = (tmp_path / train.CHECKPOINT_DIR).glob("[67]/meta/metadata")
    path.write_text(path.read_text().replace('"devices": "1 x', '"devices": "4 x'))
    seal(path.parents[1])
    with caplog.at_level(logging.WARNING, "mlg_jax"):
        result = toy.run(work_dir=tmp_path)
    (message,) = [m for m in caplog.messages if "bit-identical" in m]
    assert "written on 4 x cpu, this run uses 1 x cpu: it resumes" in message
    toy.assert_equal(result.state, uninterrupted[0].state)


@pytest.mark.bad_input
def test_a_broken_run_names_the_last_checkpoint_that_is_sound(tmp_path):
    """The latest checkpoint, of step 6, is damaged while the run continues."""

    def spoil_the_checkpoint_too(batch):
        (tmp_path / train.CHECKPOINT_DIR / "6/metrics/metrics").write_text("")
        return spoil(batch)

    task = toy.make_task(batches=toy.make_batches(poison={7: spoil_the_checkpoint_too}))
    with pytest.raises(train.NonFiniteError, match="last good checkpoint has step 4"):
        toy.run(task, work_dir=tmp_path)


@pytest.mark.bad_input
@pytest.mark.parametrize("with_exact", [False, True])
def test_nan_in_the_data_stops_with_the_step(tmp_path, with_exact):
    """Detected at a later log step, reported with its own step; the last checkpoint is readable."""
    task = toy.make_task(
        batches=toy.make_batches(poison={7: spoil}),
        exact_loss_fn=toy.make_loss(dropout=0.2) if with_exact else None,
    )
    with pytest.raises(
        train.NonFiniteError,
        match=r"step 7 \(epoch 1, batch 3\): the loss is not finite.*good checkpoint has step 6",
    ) as caught:
        toy.run(task, work_dir=tmp_path)
    assert caught.value.step == 7
    assert train.load_variables(tmp_path / train.CHECKPOINT_DIR)[2]["step"] in (4, 6)
    toy.run(work_dir=tmp_path)  # with clean data it continues


@pytest.mark.bad_input
def test_a_broken_gradient_without_an_exact_step_stops_at_a_later_fetch(tmp_path):
    """Steps 5 to 7 run with a frozen state; the next log step reports step 4."""
    loss_fn = overflowing(toy.make_loss())
    task = toy.make_task(loss_fn=loss_fn, batches=flagged({4}), eval_batches=None)
    spec = toy.make_spec(log_every_steps=100, checkpoint_every_steps=None)
    with pytest.raises(
        train.NonFiniteError, match=r"step 4 \(epoch 1, batch 0\): a gradient is not finite"
    ):
        toy.run(task, spec, work_dir=tmp_path)
    assert train.load_variables(tmp_path / train.CHECKPOINT_DIR)[2]["step"] == 4


def test_overflows_are_repeated_exactly():
    """Equals, bit for bit, a run that uses the exact loss at those steps, dropout included."""
    bad, exact = {1, 5, 6}, toy.make_loss(dropout=0.2, label_smoothing=0.1)
    fast = toy.make_loss(dropout=0.2)
    repeated = toy.make_task(
        loss_fn=overflowing(fast),
        exact_loss_fn=exact,
        batches=flagged(bad),
        eval_batches=None,
    )
    result = toy.run(repeated)
    assert int(result.state.num_overflows) == 3 and int(result.state.step) == NUM_STEPS

    # The same run by hand: the host selects the loss for each step, so nothing overflows.
    spec = toy.make_spec()
    schedule = train.make_schedule(
        spec.schedule, num_epochs=spec.num_epochs, steps_per_epoch=toy.STEPS_PER_EPOCH
    )
    optimizer = train.make_optimizer(spec.optimizer, schedule)
    mesh = train.make_mesh()
    state = train.create_state(
        params=toy.make_params(),
        model_state=toy.make_model_state(),
        optimizer=optimizer,
        key=jax.random.key(7),
    )
    state = train.replicate(state, mesh)
    steps = [train.make_train_step(f, optimizer, mesh) for f in (overflowing(fast), exact)]
    for index in range(NUM_STEPS):
        batch = {**toy.make_batch(index), "bad": np.zeros(toy.ROWS, bool)}
        state, _ = steps[index in bad](state, train.shard_batch(batch, mesh))
    toy.assert_equal(result.state.replace(num_overflows=state.num_overflows), state)


def test_recalibration_replaces_the_step():
    """`on_overflow` is called once after each exact step; the new loss does not overflow again."""
    asked = []

    def on_overflow(state, batch):
        asked.append((int(state.step), bool(batch["bad"].any())))
        return toy.make_loss() if len(asked) == 2 else None

    task = toy.make_task(
        loss_fn=overflowing(toy.make_loss()),
        exact_loss_fn=toy.make_loss(),
        on_overflow=on_overflow,
        batches=flagged({1, 3, 5, 6}),
        eval_batches=None,
    )
    result = toy.run(task)
    assert asked == [(2, True), (4, True)]
    assert int(result.state.num_overflows) == 2


def test_follow_is_asked_after_every_epoch_but_the_last():
    """It is called with the last batch of the epoch and the state after it."""
    asked = []

    def on_epoch_end(state, batch):
        asked.append((int(state.step), np.asarray(batch["x"])))
        return None

    toy.run(toy.make_task(on_epoch_end=on_epoch_end, eval_batches=None))
    assert [step for step, _ in asked] == [4, 8]
    for step, x in asked:
        np.testing.assert_array_equal(x, toy.make_batch(step - 1)["x"])


def test_overflows_are_logged_and_survive_a_resume(tmp_path):
    task = toy.make_task(
        loss_fn=overflowing(toy.make_loss()),
        exact_loss_fn=toy.make_loss(),
        batches=flagged({1, 9}),
        eval_batches=None,
    )
    whole = toy.run(task)

    def stopped(epoch, start):
        for index, batch in enumerate(flagged({1, 9})(epoch, start), start=start):
            if (epoch, index) == (1, 2):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.raises(train.TrainingInterrupted):
        toy.run(toy.make_task(**{**vars(task), "batches": stopped}), work_dir=tmp_path)
    toy.assert_equal(toy.run(task, work_dir=tmp_path).state, whole.state)
    assert [line["num_overflows"] for line in train.read_metrics(tmp_path)][-1] == 2


@pytest.mark.bad_input
def test_an_exact_step_that_breaks_too_stops_the_run(tmp_path):
    broken = overflowing(toy.make_loss())
    task = toy.make_task(
        loss_fn=broken, exact_loss_fn=broken, batches=flagged({5}), eval_batches=None
    )
    with pytest.raises(train.NonFiniteError, match="step 5 .* a gradient is not finite"):
        toy.run(task, work_dir=tmp_path)
    assert train.load_variables(tmp_path / train.CHECKPOINT_DIR)[2]["step"] == 4


@pytest.mark.parametrize("name", ["sgd", "radam", "sam"])
def test_every_optimiser_overfits_64_rows(name):
    """The labels are random, so the network must memorise them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, toy.FEATURES)).astype(np.float32)
    batch = {"x": x, "y": rng.integers(0, toy.CLASSES, 64)}

    def batches(epoch, start):
        return iter([batch] * (10 - start))

    optimizer = train.OptimizerSpec(name="sgd", sam_rho=0.02) if name == "sam" else None
    is_sgd = name in ("sgd", "sam")
    spec = train.TrainSpec(
        num_epochs=80,
        eval_every_epochs=80,
        optimizer=optimizer or train.OptimizerSpec(name=name),
        schedule=train.ScheduleSpec(name="one_cycle", learning_rate=0.3 if is_sgd else 0.03),
        best_mode="min",
        best_metric="loss",
    )
    task = train.Task(
        loss_fn=toy.make_loss(),
        batches=batches,
        steps_per_epoch=10,
        eval_batches=lambda: [batch],
    )
    result = toy.run(task, spec, params=toy.make_params(hidden=96))
    assert result.metrics["accuracy"] >= 0.97 and result.metrics["loss"] < 0.2
    assert result.best_value == result.metrics["loss"]


def test_log_lines_and_tensorboard(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="mlg_jax.train"):
        toy.run(spec=toy.make_spec(num_epochs=1), work_dir=tmp_path)
    assert "train step=3 epoch=0" in caplog.text and "eval step=4" in caplog.text
    events = list((tmp_path / "tensorboard").iterdir())
    assert len(events) == 1 and b"train/loss" in events[0].read_bytes()
    for line in (tmp_path / train.METRICS_FILE).read_text().splitlines():
        assert json.loads(line)["kind"] in ("train", "eval")


def test_a_progress_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    toy.run(spec=toy.make_spec(num_epochs=1))
    captured = capsys.readouterr()
    assert "4/4" in captured.err and "eval step=4" in captured.err and not captured.out


def test_the_device_is_not_waited_for_between_fetches(monkeypatch):
    """Without an exact step, values are fetched only at the two log steps and after compilation."""
    reads = []
    original = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: (reads.append(1), original(x))[1])
    spec = toy.make_spec(num_epochs=1, log_every_steps=2, checkpoint_every_steps=None)
    toy.run(toy.make_task(eval_batches=None), spec)
    assert len(reads) == 4  # the flags and the sums, at steps 2 and 4


@pytest.mark.bad_input
def test_error_messages(tmp_path):
    short = toy.make_task(batches=toy.make_batches(num_batches=2))
    with pytest.raises(
        ValueError, match="`batches` must yield 4 batches per epoch; got 2 in epoch"
    ):
        toy.run(short)
    with pytest.raises(ValueError, match=r"`best_metric` must be one of \['accuracy', 'loss'\]"):
        toy.run(spec=toy.make_spec(best_metric="top5"))
    with pytest.raises(TypeError, match="`spec` must be TrainSpec"):
        toy.run(spec="fast")
    with pytest.raises(ValueError, match="`steps_per_epoch` must be .*; got 0"):
        toy.make_task(steps_per_epoch=0)
    toy.run(spec=toy.make_spec(num_epochs=1), work_dir=tmp_path, config={"seed": 1})
    with pytest.raises(train.WorkDirError, match="`seed` was 1, now 2"):
        toy.run(work_dir=tmp_path, config={"seed": 2})
    with pytest.raises(train.CheckpointError, match="'params/first/bias'"):
        toy.run(work_dir=tmp_path, config={"seed": 1}, params=toy.make_params(hidden=4))
    (tmp_path / train.FINGERPRINT_FILE).unlink()  # the checkpoint knows it too
    with pytest.raises(train.CheckpointError, match="was written under another configuration"):
        toy.run(work_dir=tmp_path, config={"seed": 2})
