"""Files of a projection: its result, and its state while it is under way."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from mlg_jax.compress import History, Projection

_log = logging.getLogger("mlg_jax.experiment")


class NpzStore:
    """The state of a projection under way, in one file that is replaced as a whole."""

    def __init__(self, path: Path, *, is_writable: bool) -> None:
        self._path, self._is_writable = path, is_writable

    def load(self) -> tuple[list[np.ndarray], History] | None:
        """The state, if there is one."""
        if not self._path.exists():
            return None
        with np.load(self._path) as archive:
            history = tuple((int(step), float(loss)) for step, loss in archive["history"])
            leaves = [archive[f"leaf{i}"] for i in range(len(archive.files) - 1)]
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


def save_projection(path: Path, projection: Projection) -> None:
    """The variables at `path`, errors and losses as `projection.json` beside it."""
    flat = traverse_util.flatten_dict(projection.variables, sep="/")
    curve = {"errors": projection.errors, "history": projection.history}
    path.with_name("projection.json").write_text(json.dumps(curve, indent=1))
    _save_npz(path, flat)


def _save_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
