"""TensorBoard event files with scalars."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Board:
    """One event file, written synchronously.

    TensorboardX's `SummaryWriter` writes from a thread, which dies if the disk is full, so that the
    program waits for it forever.

    Args:
        directory: created if it does not exist.
        resumed_step: TensorBoard hides the values that earlier files hold for later steps.
    """

    def __init__(self, directory: Path, resumed_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        directory.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(directory / "events"))
        start = SessionLog(status=SessionLog.START)
        self._write(step=resumed_step + 1, session_log=start)
        self._file.flush()

    def write(self, values: Mapping[str, float], *, step: int, is_flushed: bool) -> None:
        """Adds scalars by name; `is_flushed` writes them to disk at once."""
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=Summary(value=scalars))
        if is_flushed:
            self._file.flush()

    def close(self) -> None:
        """Writes buffered events and closes the file."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(wall_time=time.time(), **fields))
