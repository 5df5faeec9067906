"""Files of a projection: its result, and its state while it runs."""

import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from mlg_jax._atomic import write_atomically
from mlg_jax.compress import History, Projection
from mlg_jax.train import CheckpointError, damage, seal

_log = logging.getLogger("mlg_jax.experiment")


class ProjectionCheckpoint:
    """The state of a running projection, in one file that is replaced atomically."""

    def __init__(self, path: Path, *, is_writable: bool) -> None:
        self._path, self._is_writable = path, is_writable

    def load(self) -> tuple[list[np.ndarray], History] | None:
        """The saved state; None if there is none, or, with a warning, if it is damaged."""
        if not self._path.exists():
            return None
        try:
            arrays = _load_npz(self._path)
            history = tuple((int(step), float(loss)) for step, loss in arrays.pop("history"))
            leaves = [arrays[f"leaf{i}"] for i in range(len(arrays))]
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            _log.warning("%s is damaged: the projection starts over. (%s)", self._path, error)
            return None
        _log.info("projection: resumes after %d reports", len(history))
        return leaves, history

    def save(self, leaves: Any, history: History) -> None:
        """Replaces the saved state; only one of several processes writes."""
        if not self._is_writable:
            return
        arrays = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        _save_npz(self._path, arrays | {"history": np.asarray(history, np.float64)})

    def remove(self) -> None:
        """Deletes the saved state."""
        self._path.unlink(missing_ok=True)


def is_projected(path: Path) -> bool:
    """Whether there is a complete, undamaged projection; warns of a damaged one."""
    if not path.exists():
        return False
    reason = damage(path.parent)
    if reason is not None:
        _log.warning("%s is damaged: it is computed again. (%s)", path, reason)
    return reason is None


def save_projection(path: Path, projection: Projection, store: ProjectionCheckpoint) -> None:
    """Writes the variables to `path`, errors and losses to `projection.json` beside it, and seals.

    The state of the running projection is deleted only afterwards.
    """
    flat = traverse_util.flatten_dict(projection.variables, sep="/")
    curve = {"errors": projection.errors, "history": projection.history}
    write_atomically(path.with_name("projection.json"), json.dumps(curve, indent=1).encode())
    _save_npz(path, flat)
    seal(path.parent, [path.name, "projection.json"])
    store.remove()


def load_projection(path: Path) -> dict[str, Any]:
    """Reads the variables that `save_projection` wrote.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    if not path.exists():
        raise CheckpointError(f"No projection at {path}; run --mode=train.")
    if (reason := damage(path.parent)) is not None:
        raise CheckpointError(f"{path} is damaged ({reason}); --mode=train computes it again.")
    flat = {tuple(name.split("/")): value for name, value in _load_npz(path).items()}
    return traverse_util.unflatten_dict(flat)


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with (
            path.open("rb") as file,
            np.load(file) as archive,
        ):  # NumPy would leave it open on errors
            return dict(archive)
    except Exception as error:  # of zipfile, zlib or NumPy, depending on the damage
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _save_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})
    write_atomically(path, buffer.getvalue())
