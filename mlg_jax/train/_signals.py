"""SIGTERM and SIGINT as a wish to stop after the current step."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_LOGGER = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A context manager that turns the first SIGTERM or SIGINT into a flag.

    The second one acts as it did before. Outside the main thread, where Python lets nobody
    install handlers, signals keep acting as before.
    """

    def __init__(self) -> None:
        self._is_requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._receive) for s in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def is_agreed(self, *, is_sync_point: bool) -> bool:
        """Should the run stop after this step? All processes give the same answer.

        Args:
            is_sync_point: the same on all processes. Where there are several they ask each other
                only at such a step, as it costs a message; one process alone answers at once.
        """
        if jax.process_count() == 1:
            return self._is_requested
        if not is_sync_point:
            return False
        return bool(multihost_utils.process_allgather(np.array(self._is_requested)).any())

    def _receive(self, number: int, frame: FrameType | None) -> None:
        _LOGGER.warning("%s: stopping after this step.", signal.Signals(number).name)
        self._is_requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
