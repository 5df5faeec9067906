"""Reads a directory of checkpoints without changing it."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from mlg_jax._checks import check_choice
from mlg_jax.train._arrays import CheckpointError, digests, is_variable, nest
from mlg_jax.train._seal import damage

_LOGGER = logging.getLogger(__name__)

WORST = -float("inf")  # the score of a checkpoint that was not evaluated


def load_variables(
    directory: str | Path, *, which: str = "best"
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Reads the variables of a model from the checkpoints of a run; needs no optimiser.

    Damaged checkpoints are ignored with a warning.

    Args:
        directory: the directory of the checkpoints (`checkpoints` in a work directory).
        which: `best` (or the latest, if no checkpoint is scored) or `latest`.

    Returns:
        Parameters and model state, as nested dictionaries of NumPy arrays, and the `meta` of the
        checkpoint.

    Raises:
        ValueError: `which` is unknown.
        CheckpointError: there is no complete, undamaged checkpoint.
    """
    check_choice("which", which, ("best", "latest"))
    path = Path(directory).absolute()
    if not path.is_dir():
        raise CheckpointError(f"No checkpoint in {path}: there is no such directory.")
    sound = _sound_steps(path)
    best = best_of(path, sound) if which == "best" else None
    step = sound[-1] if best is None else best[0]
    if sound != steps_in(path):
        _LOGGER.warning("%s: the checkpoint of step %d is used.", path, step)
    return _read_variables(path / str(step))


def _read_variables(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    try:
        meta = json.loads((path / "meta/metadata").read_text())
        expected, described = meta.pop("digests"), meta.pop("arrays")
        host = {
            name: np.zeros(shape, dtype)
            for name, (shape, dtype) in described.items()
            if is_variable(name)
        }
        with ocp.StandardCheckpointer() as arrays:
            flat = arrays.restore(path / "variables", host)
    except Exception as error:
        raise CheckpointError(f"Cannot read {path}: {first_line(error)}") from error
    if digests(flat) != {name: expected[name] for name in flat}:
        raise CheckpointError(f"The arrays of the checkpoint {path} are damaged.")
    variables = nest(flat)
    return variables.get("params", {}), variables.get("model_state", {}), meta


def _sound_steps(path: Path) -> list[int]:
    """The steps of all undamaged checkpoints, at least one; warns about damaged ones."""
    steps = steps_in(path)
    if not steps:
        raise CheckpointError(f"No complete checkpoint in {path}.")
    reasons = {step: damage(path / str(step)) for step in steps}
    sound = [step for step in steps if reasons[step] is None]
    if not sound:
        raise CheckpointError(
            f"The checkpoint of step {steps[-1]} in {path} is damaged ({reasons[steps[-1]]}), and "
            "there is no undamaged one."
        )
    for step in steps:
        if step not in sound:
            _LOGGER.warning(
                "The checkpoint of step %d in %s is damaged and ignored: %s.",
                step,
                path,
                reasons[step],
            )
    return sound


def steps_in(directory: Path, suffix: str = "") -> list[int]:
    """The steps of all checkpoints in a directory, ascending; those set aside end in a suffix."""
    names = (path.name.removesuffix(suffix) for path in directory.glob(f"*{suffix}"))
    return sorted(int(name) for name in names if name.isdecimal())


def best_of(directory: Path, steps: Sequence[int]) -> tuple[int, float] | None:
    """Step and score of the best checkpoint, the latest if several tie; None if none is scored."""
    scores = {step: score_of(directory / str(step)) for step in steps}
    evaluated = {step: s for step, s in scores.items() if s is not None and s > WORST}
    if not evaluated:
        return None
    best = max(evaluated, key=lambda step: (evaluated[step], step))
    return best, evaluated[best]


def score_of(path: Path) -> float | None:
    """The score of a checkpoint (higher is better); None if it cannot be read."""
    try:
        return float(json.loads((path / "metrics/metrics").read_text())["score"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of its message, at most 300 characters."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
