"""Checkpoints of a run: the two latest and the best, each complete or not there at all."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from mlg_jax._checks import check_choice
from mlg_jax.train._errors import CheckpointError
from mlg_jax.train._spec import MODES
from mlg_jax.train._state import TrainState
from mlg_jax.train._tree import named_leaves

_LOGGER = logging.getLogger(__name__)

# Two latest ones, so that one that is damaged after it was committed (a disk that lied at a power
# cut) does not end the run. `max_to_keep` with `best_fn` would delete the newest.
_NUM_LATEST = 2
_WORST = -float("inf")  # the score of a checkpoint that was not evaluated

_VARIABLES = ("params", "model_state")  # what a model needs; the rest is the optimiser's and ours


class Checkpointer:
    """The checkpoints in one directory. Arrays are stored by name, whatever pytree they are in.

    Args:
        directory: made if it is not there.
        best_mode: whether the `max` or `min` score is best.

    Raises:
        ValueError: another mode.
        CheckpointError: the directory cannot be made.
    """

    def __init__(self, directory: str | Path, *, best_mode: str = "max") -> None:
        check_choice("best_mode", best_mode, MODES)
        self._directory = Path(directory).absolute()  # orbax accepts no other
        self._sign = 1.0 if best_mode == "max" else -1.0
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"Cannot make {self._directory}: {error}.") from error
        self._manager = _open_manager(self._directory)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the directory."""
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint, of equal ones the latest; None: none was evaluated."""
        scores = {step: self._score(step) for step in self.steps}
        evaluated = [step for step, score in scores.items() if score > _WORST]
        return max(evaluated, key=lambda step: (scores[step], step)) if evaluated else None

    def save(
        self, state: TrainState, *, meta: Mapping[str, Any], score: float | None = None
    ) -> None:
        """Writes a checkpoint and deletes those that are neither recent nor best.

        Args:
            state: all of it is stored, under `state.step`.
            meta: anything JSON can hold, returned by `restore`.
            score: by which the best is chosen; None or not finite: not evaluated.

        Raises:
            CheckpointError: it cannot be written; those before it are intact.
        """
        step = int(state.step)
        variables, rest = _split(state)
        is_scored = score is not None and np.isfinite(score)
        contents = ocp.args.Composite(
            variables=ocp.args.StandardSave(variables),
            rest=ocp.args.StandardSave(rest),
            meta=ocp.args.JsonSave({**meta, "step": step, "arrays": _describe(variables | rest)}),
        )
        metrics = {"score": self._sign * float(score) if is_scored else _WORST}  # type: ignore[arg-type]
        try:
            self._manager.save(step, args=contents, metrics=metrics, force=True)
            self._manager.wait_until_finished()
        except Exception as error:  # orbax: OSError, ValueError, RuntimeError ... by what failed
            last = self.steps[-1] if self.steps else None
            raise CheckpointError(
                f"Cannot write the checkpoint of step {step} to {self._directory} (is the disk "
                f"full?); the last good one is of step {last}. Cause: {_first_line(error)}"
            ) from error

    def restore(
        self, template: TrainState, *, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Reads a checkpoint into arrays like the template's, on the template's devices.

        A latest checkpoint that is complete by name but damaged is set aside, with a warning, and
        the one before it is read.

        Args:
            template: a state of the run to resume; only shapes, dtypes and shardings are read.
            step: which one; None: the latest one that can be read.

        Returns:
            The state and its `meta`; None when there is no checkpoint.

        Raises:
            CheckpointError: a checkpoint of another model, of no such step, or none readable.
        """
        if step is not None:
            return self._restore_step(template, self._checked(step))
        steps = self.steps
        for candidate in reversed(steps):
            try:
                return self._restore_step(template, candidate)
            except CheckpointError:
                raise
            except Exception as error:  # by what is damaged: ValueError, KeyError, OSError, ...
                _LOGGER.warning(
                    "The checkpoint of step %d in %s is damaged and set aside: %s",
                    candidate,
                    self._directory,
                    _first_line(error),
                )
                self._set_aside(candidate)
        if steps:
            raise CheckpointError(
                f"No checkpoint in {self._directory} can be read: those of steps {steps} are "
                "damaged. Remove the directory to start again."
            )
        return None

    def _restore_step(self, template: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        meta = dict(meta["meta"])
        variables, rest = _split(template)
        _check_same_arrays(
            _describe(variables | rest), meta.pop("arrays"), self._directory / str(step)
        )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(_abstract(variables)),
                rest=ocp.args.StandardRestore(_abstract(rest)),
            ),
        )
        return _join(template, {**restored["variables"], **restored["rest"]}), meta

    def _checked(self, step: int) -> int:
        if step not in self.steps:
            raise CheckpointError(
                f"No checkpoint of step {step} in {self._directory}; there are {self.steps}."
            )
        return step

    def _score(self, step: int) -> float:
        metrics = self._manager.metrics(step)
        return _WORST if metrics is None else float(metrics["score"])

    def _set_aside(self, step: int) -> None:
        """Renames the directory: nothing is lost, and the step can be written again."""
        if jax.process_index() == 0:
            source = self._directory / str(step)
            source.rename(self._directory / f"{step}.damaged")
        self._manager.reload()


def load_variables(
    directory: str | Path, *, which: str = "best"
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Reads a model out of a run's checkpoints, without knowing its optimiser.

    Args:
        directory: the checkpoints' own directory.
        which: `best` (the latest, where none was evaluated) or `latest`.

    Returns:
        Parameters, model state (nested dictionaries of NumPy arrays) and the checkpoint's `meta`.

    Raises:
        ValueError: another `which`.
        CheckpointError: no complete checkpoint in there, or a damaged one.
    """
    check_choice("which", which, ("best", "latest"))
    path = Path(directory).absolute()
    if not path.is_dir():
        raise CheckpointError(f"No checkpoint in {path}: there is no such directory.")
    with Checkpointer(path) as checkpoints:
        if not checkpoints.steps:
            raise CheckpointError(f"No complete checkpoint in {path}.")
        best = checkpoints.best_step if which == "best" else None
        step = checkpoints.steps[-1] if best is None else best
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            meta = dict(reader.restore(path / str(step) / "meta"))
        described = meta.pop("arrays")
        host = {
            name: np.zeros(shape, dtype)
            for name, (shape, dtype) in described.items()
            if name.split("/")[0] in _VARIABLES
        }
        with ocp.StandardCheckpointer() as arrays:
            flat = arrays.restore(path / str(step) / "variables", host)
    except Exception as error:
        raise CheckpointError(
            f"The checkpoint of step {step} in {path} is damaged: {_first_line(error)}"
        ) from error
    variables = _nest(flat)
    return variables.get("params", {}), variables.get("model_state", {}), meta


def _open_manager(directory: Path) -> ocp.CheckpointManager:
    def score(metrics: Any) -> float:
        return metrics["score"]

    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
            best_fn=score,  # without it orbax does not store the metrics
            best_mode="max",
            preservation_policy=AnyPreservationPolicy(
                [LatestN(_NUM_LATEST), BestN(get_metric_fn=score, n=1)]
            ),
            enable_async_checkpointing=False,  # an error belongs to the step that met it
        ),
    )


def _split(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state's arrays by name: the model's, and all others; typed keys as their words."""
    arrays = {
        name: jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for name, leaf in named_leaves(state).items()
    }
    variables = {k: v for k, v in arrays.items() if k.split("/")[0] in _VARIABLES}
    return variables, {k: v for k, v in arrays.items() if k not in variables}


def _join(template: TrainState, arrays: Mapping[str, Any]) -> TrainState:
    leaves, structure = jax.tree.flatten(template)
    values = [
        jax.random.wrap_key_data(arrays[name], impl=jax.random.key_impl(leaf))
        if _is_key(leaf)
        else arrays[name]
        for name, leaf in zip(named_leaves(template), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, values)


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _abstract(arrays: Mapping[str, jax.Array]) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in arrays.items()
    }


def _describe(arrays: Mapping[str, jax.Array]) -> dict[str, list[Any]]:
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in arrays.items()}


def _check_same_arrays(
    expected: Mapping[str, list[Any]], found: Mapping[str, list[Any]], path: Path
) -> None:
    """Raises CheckpointError that names the first array in which the two differ."""
    for name in (*expected, *found):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"The checkpoint {path} is of another model or optimiser: {name!r} must be "
                f"{_words(expected.get(name))}; got {_words(found.get(name))}."
            )


def _words(description: list[Any] | None) -> str:
    if description is None:
        return "absent"
    shape, dtype = description
    return f"{dtype}{shape}"


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = value
    return nested


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
