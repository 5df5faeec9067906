"""Checkpoints of a run: the two latest and the best, written atomically and sealed."""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mlg_jax._checks import check_choice
from mlg_jax.train._arrays import (
    CheckpointError,
    abstract,
    check_same_arrays,
    describe,
    digests,
    join_arrays,
    split_arrays,
)
from mlg_jax.train._mesh import all_agree, shared_token, wait_for_all
from mlg_jax.train._seal import damage, seal
from mlg_jax.train._spec import MODES
from mlg_jax.train._state import TrainState
from mlg_jax.train._stored import WORST, best_of, first_line, score_of, steps_in

_LOGGER = logging.getLogger(__name__)

# Two, so that a run survives a latest checkpoint that is damaged after it was committed (by a disk
# that had not written what it reported as written before a power failure).
_NUM_LATEST = 2
_UNFINISHED = re.compile(r"\d+\..*tmp")
_DAMAGED = ".damaged"


class Checkpointer:
    """The checkpoints in one directory; arrays are stored by name, independent of the pytree.

    Every checkpoint holds digests of its arrays and of all its files. A checkpoint with a damaged
    file is set aside: it is renamed to `STEP.damaged`, with a warning, and never used or deleted.

    Args:
        directory: created if it does not exist; unfinished checkpoints of killed processes are
            removed.
        best_mode: `max` or `min`, whichever score is best.

    Raises:
        ValueError: `best_mode` is unknown.
        CheckpointError: the directory cannot be created.
    """

    def __init__(self, directory: str | Path, *, best_mode: str = "max") -> None:
        check_choice("best_mode", best_mode, MODES)
        self._directory = Path(directory).absolute()  # Orbax requires an absolute path
        self._sign = 1.0 if best_mode == "max" else -1.0
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                _remove_unfinished(self._directory)
        except OSError as error:
            raise CheckpointError(f"Cannot create {self._directory}: {error}.") from error
        wait_for_all("unfinished checkpoints removed")
        self._orbax = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                variables=ocp.StandardCheckpointHandler(),
                rest=ocp.StandardCheckpointHandler(),
                meta=ocp.JsonCheckpointHandler(),
                metrics=ocp.JsonCheckpointHandler(filename="metrics"),
            )
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the directory."""
        self._orbax.close()

    @property
    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return steps_in(self._directory)

    @property
    def latest_sound_step(self) -> int | None:
        """The step of the latest undamaged checkpoint; reads all its files to verify them."""
        return next((s for s in reversed(self.steps) if damage(self._path(s)) is None), None)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the best checkpoint, the latest if several tie; None if unscored."""
        found = best_of(self._directory, self.steps)
        return None if found is None else (found[0], self._sign * found[1])

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint; None if no checkpoint is scored."""
        return None if self.best is None else self.best[0]

    def save(
        self, state: TrainState, *, meta: Mapping[str, Any], score: float | None = None
    ) -> None:
        """Writes a checkpoint and deletes those that are neither recent nor best.

        Args:
            state: stored completely, under the name `state.step`.
            meta: a JSON-serialisable mapping, returned by `restore`.
            score: used to choose the best checkpoint; None or a non-finite value leaves this one
                unscored.

        Raises:
            CheckpointError: the checkpoint cannot be written; earlier ones are unchanged.
        """
        step = int(state.step)
        try:
            self._write(state, step, meta, score)
            if jax.process_index() == 0:
                self._delete_old()
        except Exception as error:  # Orbax raises OSError, ValueError, RuntimeError, ...
            raise CheckpointError(
                f"Cannot write the checkpoint of step {step} to {self._directory} (is the disk "
                f"full?); the last good one has step {self.latest_sound_step}. Cause: "
                f"{first_line(error)}"
            ) from error
        wait_for_all("checkpoint saved")

    def restore(
        self, template: TrainState, *, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Reads a checkpoint into arrays with the shapes, dtypes and shardings of `template`.

        Without `step`, all damaged checkpoints are set aside first. If the best one is among them,
        the best is from then on chosen from the remaining and later checkpoints.

        Args:
            template: a state of the run to resume; its values are not used.
            step: the step to restore; None restores the latest undamaged checkpoint.

        Returns:
            The state and its `meta`; None if there is no checkpoint.

        Raises:
            CheckpointError: the checkpoint belongs to another model, `step` does not exist, or all
                checkpoints are damaged. In the last case the user must decide whether to start
                again, by removing the directory.
        """
        if step is not None:
            restored = self._restore_step(template, self._checked(step))
            if restored is None:
                raise CheckpointError(
                    f"The arrays of the checkpoint {self._path(step)} are damaged."
                )
            return restored
        self._set_aside_damaged()
        for candidate in reversed(self.steps):
            restored = self._restore_step(template, candidate)
            if restored is not None:
                return restored
            self._set_aside(candidate, "its arrays differ from those that were saved")
        if damaged := steps_in(self._directory, _DAMAGED):
            raise CheckpointError(
                f"No checkpoint in {self._directory} can be read: steps {damaged} are damaged. "
                "Remove the directory to start again."
            )
        return None

    def _write(
        self, state: TrainState, step: int, meta: Mapping[str, Any], score: float | None
    ) -> None:
        """Writes under a temporary name; process 0 then seals and renames the directory."""
        variables, rest = split_arrays(state)
        arrays = variables | rest
        is_scored = score is not None and np.isfinite(score)
        contents = ocp.args.Composite(
            variables=ocp.args.StandardSave(variables),
            rest=ocp.args.StandardSave(rest),
            meta=ocp.args.JsonSave(
                {**meta, "step": step, "arrays": describe(arrays), "digests": digests(arrays)}
            ),
            metrics=ocp.args.JsonSave(
                {"score": self._sign * float(score) if is_scored else WORST}  # type: ignore[arg-type]
            ),
        )
        # A unique name, because threads of a failed save may still be writing.
        unsealed = self._path(f"{step}.{shared_token()}.tmp")
        self._orbax.save(unsealed, args=contents)
        if jax.process_index() == 0:
            seal(unsealed)
            unsealed.rename(self._path(step))

    def _delete_old(self) -> None:
        """Deletes old checkpoints, but keeps damaged ones (no readable score) for `restore`."""
        steps = self.steps
        best = best_of(self._directory, steps)
        kept = {*steps[-_NUM_LATEST:], None if best is None else best[0]}
        for step in steps:
            if step not in kept and score_of(self._path(step)) is not None:
                # Renamed first, so that a kill never leaves a partly deleted checkpoint.
                path = self._path(f"{step}.tmp")
                self._path(step).rename(path)
                shutil.rmtree(path)

    def _restore_step(
        self, template: TrainState, step: int
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The state and its meta; None if they differ from what was saved."""
        path = self._path(step)
        if not all_agree(jax.process_index() > 0 or damage(path) is None):
            return None
        try:
            meta = json.loads((path / "meta/metadata").read_text())
            variables, rest = split_arrays(template)
            check_same_arrays(describe(variables | rest), meta.pop("arrays"), path)
            restored = self._orbax.restore(
                path,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardRestore(abstract(variables)),
                    rest=ocp.args.StandardRestore(abstract(rest)),
                ),
            )
        except CheckpointError:
            raise
        except Exception as error:  # Orbax raises many types
            raise CheckpointError(f"Cannot read {path}: {first_line(error)}") from error
        arrays = {**restored["variables"], **restored["rest"]}
        if not all_agree(digests(arrays) == meta.pop("digests")):
            return None
        return join_arrays(template, arrays), meta

    def _checked(self, step: int) -> int:
        if step not in self.steps:
            raise CheckpointError(
                f"No checkpoint of step {step} in {self._directory}; there are {self.steps}."
            )
        return step

    def _set_aside_damaged(self) -> None:
        if jax.process_index() == 0:
            for step in self.steps:
                if (reason := damage(self._path(step))) is not None:
                    self._rename_damaged(step, reason)
        wait_for_all("damaged checkpoints set aside")

    def _set_aside(self, step: int, reason: str) -> None:
        if jax.process_index() == 0:
            self._rename_damaged(step, reason)
        wait_for_all("damaged checkpoint set aside")

    def _rename_damaged(self, step: int, reason: str) -> None:
        """Sets a checkpoint aside under a new name, so that its step can be written again."""
        target, num_before = self._path(f"{step}{_DAMAGED}"), 0
        while target.exists():
            num_before += 1
            target = self._path(f"{step}{_DAMAGED}.{num_before}")
        self._path(step).rename(target)
        _LOGGER.warning(
            "The checkpoint of step %d in %s is damaged and set aside as %s: %s.",
            step,
            self._directory,
            target.name,
            reason,
        )

    def _path(self, name: int | str) -> Path:
        return self._directory / str(name)


def _remove_unfinished(directory: Path) -> None:
    """Removes unfinished checkpoints as far as possible: a failed save may still be writing."""
    for path in directory.iterdir():
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
