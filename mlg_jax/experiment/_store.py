"""Files of a projection: its result, and its state while it is under way."""

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
    """The state of a projection under way, in one file that is replaced as a whole."""

    def __init__(self, path: Path, *, is_writable: bool) -> None:
        self._path, self._is_writable = path, is_writable

    def load(self) -> tuple[list[np.ndarray], History] | None:
        """The state, if there is one; a damaged one is none, with a warning."""
        if not self._path.exists():
            return None
        try:
            arrays = _load_npz(self._path)
            history = tuple((int(step), float(loss)) for step, loss in arrays.pop("history"))
            leaves = [arrays[f"leaf{i}"] for i in range(len(arrays))]
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            _log.warning("%s is damaged: the projection starts again. (%s)", self._path, error)
            return None
        _log.info("projection: resumes after %d reports", len(history))
        return leaves, history

    def save(self, leaves: Any, history: History) -> None:
        """Replaces the state; of several processes only one does."""
        if not self._is_writable:
            return
        arrays = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        _save_npz(self._path, arrays | {"history": np.asarray(history, np.float64)})

    def remove(self) -> None:
        """Forgets the state: the projection is done."""
        self._path.unlink(missing_ok=True)


def is_projected(path: Path) -> bool:
    """Whether a projection is complete and as it was written; warns of one that is damaged."""
    if not path.exists():
        return False
    reason = damage(path.parent)
    if reason is not None:
        _log.warning("%s is damaged: it is computed again. (%s)", path, reason)
    return reason is None


def save_projection(path: Path, projection: Projection, store: ProjectionCheckpoint) -> None:
    """The variables at `path`, errors and losses as `projection.json` beside it; sealed.

    The state of the projection goes only then.
    """
    flat = traverse_util.flatten_dict(projection.variables, sep="/")
    curve = {"errors": projection.errors, "history": projection.history}
    write_atomically(path.with_name("projection.json"), json.dumps(curve, indent=1).encode())
    _save_npz(path, flat)
    seal(path.parent, [path.name, "projection.json"])
    store.remove()


def load_projection(path: Path) -> dict[str, Any]:
    """The variables that `save_projection` wrote.

    Raises:
        CheckpointError: there are none, or damaged ones.
    """
    if not path.exists():
        raise CheckpointError(f"No projection at {path}; run --mode=train.")
    if (reason := damage(path.parent)) is not None:
        raise CheckpointError(f"{path} is damaged ({reason}); --mode=train computes it again.")
    flat = {tuple(name.split("/")): value for name, value in _load_npz(path).items()}
    return traverse_util.unflatten_dict(flat)


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file) as archive:  # NumPy leaves it open on errors
            return dict(archive)
    except Exception as error:  # by what is damaged: zipfile's, zlib's, NumPy's
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _save_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})
    write_atomically(path, buffer.getvalue())
