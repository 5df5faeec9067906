"""The training loop: epochs of steps, evaluations, checkpoints and logs, for any model."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from mlg_jax._checks import check_instance
from mlg_jax.train._arrays import CheckpointError
from mlg_jax.train._checkpoint import Checkpointer
from mlg_jax.train._evaluate import evaluate
from mlg_jax.train._lock import lock_work_dir
from mlg_jax.train._mesh import make_mesh, replicate, shard_batch
from mlg_jax.train._optimizer import (
    DecayRule,
    check_groups,
    is_decayed_by_rank,
    make_optimizer,
    without_frozen,
)
from mlg_jax.train._pruning import initial_masks, make_pruning, zero_fraction
from mlg_jax.train._schedule import Schedule, make_schedule
from mlg_jax.train._signals import StopRequest, TrainingInterrupted
from mlg_jax.train._spec import TrainSpec
from mlg_jax.train._state import TrainState, create_state
from mlg_jax.train._step import LossFn, StepReport, TrainStep, make_eval_step, make_train_step
from mlg_jax.train._task import NonFiniteError, Task, TrainResult
from mlg_jax.train._window import Window
from mlg_jax.train._workdir import bind_work_dir, fingerprint
from mlg_jax.train._writers import MetricsWriter

CHECKPOINT_DIR = "checkpoints"
_LOGGER = logging.getLogger(__name__)


def train(
    task: Task,
    spec: TrainSpec,
    *,
    params: Any,
    key: jax.Array,
    model_state: Any = None,
    work_dir: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    is_decayed: DecayRule = is_decayed_by_rank,
) -> TrainResult:
    """Trains for `spec.num_epochs`, resuming from the latest checkpoint in `work_dir` if any.

    Writes `checkpoints/`, `metrics.jsonl` and `tensorboard/` into the work directory.

    Args:
        task: the functions to train with.
        spec: optimiser, schedule and length of the run.
        params: initial parameters; not modified.
        key: typed key of the run.
        model_state: initial model state; not modified.
        work_dir: directory for checkpoints and logs; None writes nothing to disk.
        config: JSON-serialisable; everything that determines the results of the run. A work
            directory created with another configuration is refused.
        mesh: as returned by `make_mesh`; None uses all devices of all processes.
        is_decayed: selects the parameters to which weight decay applies.

    Returns:
        The final state, the last metrics, and the best evaluation.

    Raises:
        NonFiniteError: a loss or gradient is not finite; the checkpoints are unchanged.
        TrainingInterrupted: SIGTERM or SIGINT arrived; the state has been saved.
        CheckpointError: a checkpoint belongs to another model or cannot be written.
        WorkDirError: `work_dir` belongs to another experiment, or to a run in progress.
        TypeError, ValueError: arguments, batches or metrics are invalid.
    """
    check_instance("task", task, Task)
    check_instance("spec", spec, TrainSpec)
    check_groups(spec.optimizer, params)
    mesh = make_mesh() if mesh is None else mesh
    schedule = make_schedule(
        spec.schedule, num_epochs=spec.num_epochs, steps_per_epoch=task.steps_per_epoch
    )
    optimizer = make_optimizer(
        spec.optimizer,
        schedule,
        is_decayed=is_decayed,
        num_steps=spec.num_epochs * task.steps_per_epoch,
    )
    is_trainable = without_frozen(task.is_trainable, spec.optimizer)
    task = dataclasses.replace(task, is_trainable=is_trainable)
    start = create_state(
        params=params,
        optimizer=optimizer,
        key=key,
        model_state=model_state,
        is_trainable=task.is_trainable,
        masks=initial_masks(params, spec.pruning, task.is_trainable),
    )
    run = _Run(task, spec, replicate(start, mesh), optimizer, schedule, mesh)
    if work_dir is None:
        return run.to_end()
    directory = Path(work_dir).absolute()
    bind_work_dir(directory, config or {})
    with (
        lock_work_dir(directory),
        Checkpointer(directory / CHECKPOINT_DIR, best_mode=spec.best_mode) as checkpoints,
    ):
        run.resume(checkpoints, fingerprint(config or {}))
        return run.to_end(directory)


class _Run:
    """One process's part of a run; each step consumes (donates) the state and returns a new one."""

    def __init__(
        self,
        task: Task,
        spec: TrainSpec,
        state: TrainState,
        optimizer: optax.GradientTransformationExtraArgs,
        schedule: Schedule,
        mesh: Mesh,
    ) -> None:
        self._task, self._spec, self._mesh = task, spec, mesh
        self._optimizer, self._schedule = optimizer, schedule
        self._pruning = (
            None
            if spec.pruning is None
            else make_pruning(spec.pruning, spec.num_epochs * task.steps_per_epoch)
        )
        self._state = state
        self._step = 0  # batches processed; equals `state.step` unless the state is frozen
        self._metrics: dict[str, float] = {}
        self._best: tuple[int, float] | None = None
        self._checkpoints: Checkpointer | None = None
        self._fingerprint = ""
        self._window = Window()
        self._is_compiled = False
        eval_loss_fn = task.eval_loss_fn or task.loss_fn
        self._eval_step = make_eval_step(eval_loss_fn, mesh)
        self._exact_step = (
            None if task.exact_loss_fn is None else self._compile(task.exact_loss_fn, num_repeats=1)
        )
        self._train_step = self._compile_fast(task.loss_fn)

    def resume(self, checkpoints: Checkpointer, expected_fingerprint: str) -> None:
        """Restores the latest checkpoint, if there is one."""
        self._checkpoints, self._fingerprint = checkpoints, expected_fingerprint
        restored = checkpoints.restore(self._state)
        if restored is None:
            return
        self._state, meta = restored
        if meta["fingerprint"] != expected_fingerprint:
            raise CheckpointError("The latest checkpoint was written under another configuration.")
        if meta["devices"] != self._devices():
            _LOGGER.warning(
                "The checkpoint was written on %s, this run uses %s: it resumes, but its results "
                "will not be bit-identical.",
                meta["devices"],
                self._devices(),
            )
        self._step = int(self._state.step)
        self._metrics = meta["metrics"]
        self._best = checkpoints.best
        self._window = Window.from_json(meta["window"])

    def to_end(self, work_dir: Path | None = None) -> TrainResult:
        """Runs the remaining epochs."""
        num_steps = self._spec.num_epochs * self._task.steps_per_epoch
        with (
            StopRequest() as stop,
            MetricsWriter(work_dir, resumed_step=self._step, num_steps=num_steps) as writer,
        ):
            while self._step < num_steps:
                epoch = self._step // self._task.steps_per_epoch
                self._run_epoch(epoch, stop, writer)
                self._end_epoch(epoch, writer)
                self._stop_if_asked(stop, is_sync_point=True)
        step, value = (None, None) if self._best is None else self._best
        return TrainResult(
            state=self._state, metrics=self._metrics, best_step=step, best_value=value
        )

    def _run_epoch(self, epoch: int, stop: StopRequest, writer: MetricsWriter) -> None:
        """Runs the remaining steps of an epoch."""
        length = self._task.steps_per_epoch
        first = self._step - epoch * length
        self._window.restart_clock()
        with contextlib.closing(_closable(self._task.batches(epoch, first))) as batches:
            batch = self._next_batch(batches, epoch, first)
            for index in range(first, length):
                self._state, report = self._train_step(self._state, batch)
                # Loaded while the device computes: `_settle` may wait for it.
                is_last = index + 1 == length
                following = None if is_last else self._next_batch(batches, epoch, index + 1)
                self._account(self._settle(report, batch), batch)
                if not is_last:
                    self._between_steps(epoch, stop, writer)
                elif epoch + 1 < self._spec.num_epochs:
                    self._change_loss(self._task.on_epoch_end, batch)
                batch = following

    def _next_batch(self, batches: Iterator[Any], epoch: int, index: int) -> Any:
        try:
            batch = next(batches)
        except StopIteration:
            length = self._task.steps_per_epoch
            raise ValueError(
                f"`batches` must yield {length} batches per epoch; got {index} in epoch {epoch}."
            ) from None
        return shard_batch(batch, self._mesh, num_parts=self._spec.accumulation_steps)

    def _settle(self, report: StepReport, batch: Any) -> StepReport:
        """Repeats an overflowed step exactly; waits for the device only if steps can overflow."""
        if self._exact_step is None or bool(report.is_applied):
            return report
        if bool(report.is_overflow):
            self._state, report = self._exact_step(self._state, batch)
        self._raise_if_broken()
        self._change_loss(self._task.on_overflow, batch)
        return report

    def _change_loss(
        self, choose: Callable[[TrainState, Any], LossFn | None] | None, batch: Any
    ) -> None:
        loss_fn = None if choose is None else choose(self._state, batch)
        if loss_fn is not None:
            self._train_step, self._is_compiled = self._compile_fast(loss_fn), False

    def _account(self, report: StepReport, batch: Any) -> None:
        num_examples = jax.tree.leaves(batch)[0].shape[0]
        self._window.add(report, num_examples=num_examples, is_timed=self._is_compiled)
        self._is_compiled = True
        self._step += 1

    def _between_steps(self, epoch: int, stop: StopRequest, writer: MetricsWriter) -> None:
        """Logs, saves or stops if that is due after a step that does not end its epoch."""
        is_log_due = self._step % self._spec.log_every_steps == 0
        every = self._spec.checkpoint_every_steps
        is_save_due = every is not None and self._step % every == 0
        is_stop = stop.is_agreed(is_sync_point=is_log_due)
        if is_log_due or is_save_due:
            self._log(epoch, writer)
        elif is_stop:  # without a log line, which an uninterrupted run would not have
            self._raise_if_broken()
        if is_save_due or is_stop:
            self._save(epoch, score=None)
        if is_stop:
            self._stop()

    def _end_epoch(self, epoch: int, writer: MetricsWriter) -> None:
        """Logs, evaluates if that is due, and saves."""
        self._log(epoch, writer)
        is_last = epoch + 1 == self._spec.num_epochs
        is_due = is_last or (epoch + 1) % self._spec.eval_every_epochs == 0
        score = None
        if is_due and self._task.eval_batches is not None:
            self._metrics = evaluate(
                self._eval_step,
                self._task.eval_batches(),
                params=self._state.params,
                model_state=self._state.model_state,
                mesh=self._mesh,
            )
            self._metrics |= self._zero_fraction()
            writer.write("eval", step=self._step, metrics={"epoch": epoch, **self._metrics})
            score = self._score()
        self._save(epoch, score=score)

    def _score(self) -> float:
        """The value that selects the best checkpoint; the latest wins if several tie."""
        name = self._spec.best_metric
        if name not in self._metrics:
            raise ValueError(f"`best_metric` must be one of {sorted(self._metrics)}; got {name!r}.")
        value = self._metrics[name]
        if self._pruning is not None and self._step < self._pruning.end_step:
            return float("nan")  # not sparse enough yet: left unscored
        sign = 1.0 if self._spec.best_mode == "max" else -1.0
        if value == value and (self._best is None or sign * value >= sign * self._best[1]):
            self._best = (self._step, value)
        return value

    def _zero_fraction(self) -> dict[str, float]:
        """The fraction of zeros in the pruned kernels; waits for the device."""
        if self._pruning is None:
            return {}
        return {"zero_fraction": float(zero_fraction(self._state.params, self._state.masks))}

    def _log(self, epoch: int, writer: MetricsWriter) -> None:
        """Writes the averages since the last log line; every step is in exactly one line."""
        self._raise_if_broken()
        metrics = self._window.means()
        writer.write(
            "train",
            step=self._step,
            metrics={
                "epoch": epoch,
                "num_steps": self._window.num_steps,
                "learning_rate": float(self._schedule(self._step - 1)),
                "num_overflows": int(self._state.num_overflows),
                **metrics,
                **self._zero_fraction(),
            },
        )
        self._window = Window()

    def _save(self, epoch: int, *, score: float | None) -> None:
        if self._checkpoints is None:
            return
        meta = {
            "fingerprint": self._fingerprint,
            "epoch": epoch,
            "metrics": self._metrics,
            "window": self._window.to_json(),
            "devices": self._devices(),
        }
        self._checkpoints.save(self._state, meta=meta, score=score)
        self._window.restart_clock()  # images per second exclude the time of saving

    def _devices(self) -> str:
        return f"{self._mesh.size} x {self._mesh.devices.flat[0].device_kind}"

    def _stop_if_asked(self, stop: StopRequest, *, is_sync_point: bool) -> None:
        num_steps = self._spec.num_epochs * self._task.steps_per_epoch
        if self._step < num_steps and stop.is_agreed(is_sync_point=is_sync_point):
            self._stop()

    def _stop(self) -> None:
        kept = "nothing was saved" if self._checkpoints is None else "the run can be resumed"
        raise TrainingInterrupted(f"Interrupted after {self._step} steps; {kept}.", step=self._step)

    def _raise_if_broken(self) -> None:
        """Waits for the device; raises NonFiniteError if the state is frozen."""
        flags = (self._state.is_loss_broken, self._state.is_gradient_broken)
        is_loss_broken, is_gradient_broken = (bool(flag) for flag in jax.device_get(flags))
        if not (is_loss_broken or is_gradient_broken):
            return
        step = int(self._state.step)
        epoch, index = divmod(step, self._task.steps_per_epoch)
        what = "the loss" if is_loss_broken else "a gradient"
        last = None if self._checkpoints is None else self._checkpoints.latest_sound_step
        raise NonFiniteError(
            f"Training stopped at step {step} (epoch {epoch}, batch {index}): {what} is not "
            f"finite. No update was made with it; the last good checkpoint has step {last}.",
            step=step,
        )

    def _compile_fast(self, loss_fn: LossFn) -> TrainStep:
        # Without an exact step to repeat, the state freezes itself, and the loop need not wait.
        reaction = "freeze" if self._exact_step is None else "report"
        return self._compile(loss_fn, when_gradient_breaks=reaction)

    def _compile(
        self, loss_fn: LossFn, *, when_gradient_breaks: str = "freeze", num_repeats: int = 0
    ) -> TrainStep:
        return make_train_step(
            loss_fn,
            self._optimizer,
            self._mesh,
            accumulation_steps=self._spec.accumulation_steps,
            when_gradient_breaks=when_gradient_breaks,
            num_repeats=num_repeats,
            is_trainable=self._task.is_trainable,
            update_masks=None if self._pruning is None else self._pruning.update,
        )


def _closable(batches: Iterable[Any]) -> Generator[Any, None, None]:
    """A generator over any iterable; closing it closes the iterable's own generator."""
    yield from batches
