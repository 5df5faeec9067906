"""Writes metrics to JSON lines, TensorBoard, and a progress bar or the log; on process 0 only."""

import contextlib
import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from mlg_jax._atomic import write_atomically
from mlg_jax.train._board import Board

_LOGGER = logging.getLogger("mlg_jax.train")

METRICS_FILE = "metrics.jsonl"
_TENSORBOARD_DIR = "tensorboard"


class MetricsWriter:
    """A context manager that appends metrics to `metrics.jsonl` and TensorBoard files.

    When a run resumes, lines of later steps and a last line truncated by a crash are removed, so
    that the file reads as if the run had never stopped.

    Args:
        work_dir: directory of the files; None writes to the progress bar or the log only.
        resumed_step: number of updates made before this process started.
        num_steps: number of updates of the whole run, for the progress bar.
    """

    def __init__(self, work_dir: Path | None, *, resumed_step: int, num_steps: int) -> None:
        self._is_first = jax.process_index() == 0
        self._path = Path() if work_dir is None else work_dir / METRICS_FILE
        self._file: Any = None
        self._board: Any = None
        self._bar: Any = None
        if not self._is_first:
            return
        if work_dir is not None:
            drop_lines_after(self._path, resumed_step)
            self._file = self._path.open("a", buffering=1)
            self._board = Board(work_dir / _TENSORBOARD_DIR, resumed_step)
        if sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=num_steps, initial=resumed_step, unit="step")

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Does not hide the error that ends the run: on a full disk closing fails as well.
        with (
            contextlib.suppress(OSError) if error else naming(self._path),
            contextlib.ExitStack() as stack,
        ):
            for sink in (self._file, self._board, self._bar):
                if sink is not None:
                    stack.callback(sink.close)

    def write(self, kind: str, *, step: int, metrics: Mapping[str, float | int]) -> None:
        """Writes one line, `{"kind": kind, "step": step, **metrics}`; NaN becomes null."""
        if not self._is_first:
            return
        if self._file is not None:
            values = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
            with naming(self._path):
                self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._board is not None:
            named = {f"{kind}/{name}": value for name, value in metrics.items()}
            with naming(self._path.with_name(_TENSORBOARD_DIR)):
                self._board.write(named, step=step, is_flushed=kind == "eval")
        text = " ".join(f"{name}={value:.5g}" for name, value in metrics.items())
        if self._bar is None:
            _LOGGER.info("%s step=%d %s", kind, step, text)
        elif kind == "train":
            self._bar.set_postfix_str(text)
            self._bar.update(step - self._bar.n)
        else:
            self._bar.write(f"{kind} step={step} {text}", file=sys.stderr)


def read_metrics(work_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` in a work directory, in order; damaged lines are left out."""
    path = Path(work_dir) / METRICS_FILE
    return _complete_lines(path) if path.exists() else []


def drop_lines_after(path: Path, step: int) -> None:
    """Removes the lines of later steps, and a truncated last line."""
    if not path.exists():
        return
    kept = [line for line in _complete_lines(path) if line["step"] <= step]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    """All valid lines; a truncated last line is ignored, other invalid lines cause a warning."""
    *texts, _ = path.read_bytes().split(b"\n")  # text after the last newline is truncated
    lines = [line for line in map(_parsed, texts) if line is not None]
    if len(lines) < len(texts):
        _LOGGER.warning(
            "%s: %d of %d lines are damaged and left out.",
            path,
            len(texts) - len(lines),
            len(texts),
        )
    return lines


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
        return line if isinstance(line["step"], int) and isinstance(line["kind"], str) else None
    except (ValueError, TypeError, KeyError):
        return None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the path to any OSError raised inside, since the error of a full disk names no file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
