"""SIGTERM and SIGINT as a wish to stop: after the current step, or at once with status 75."""

import gc
import logging
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any

import jax

from mlg_jax.train._mesh import all_agree

_LOGGER = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_RETRY_SECONDS = 1.0  # long enough to clean up in


class TrainingInterrupted(RuntimeError):
    """SIGTERM or SIGINT arrived; what could be saved was saved, and the run can be resumed.

    Attributes:
        step: number of updates in the checkpoint that was written; None: no training was under
            way.
        exit_code: what a program should exit with: 75, `EX_TEMPFAIL`, "try again later".
    """

    exit_code = 75

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class StopRequest:
    """A context manager that turns the first SIGTERM or SIGINT into a flag.

    The second one acts as it did before, and so does the first where it came too late for
    `is_agreed` to answer it: it is passed on when the context ends. Outside the main thread, where
    Python lets nobody install handlers, signals keep acting as before.
    """

    def __init__(self) -> None:
        self._requested: signal.Signals | None = None
        self._handlers = _Handlers(self._receive)

    def __enter__(self) -> "StopRequest":
        self._handlers.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handlers.restore()
        if kind is None and self._requested is not None:
            signal.raise_signal(self._requested)

    def is_agreed(self, *, is_sync_point: bool) -> bool:
        """Should the run stop after this step? All processes give the same answer.

        Args:
            is_sync_point: the same on all processes. Where there are several they ask each other
                only at such a step, as it costs a message; one process alone answers at once.
        """
        is_requested = self._requested is not None
        if jax.process_count() == 1:
            return is_requested
        return is_sync_point and not all_agree(not is_requested)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._requested = signal.Signals(number)
        self._handlers.restore()
        _LOGGER.warning("%s: stopping after this step.", self._requested.name)


class Interruptible:
    """A context manager that ends what has nothing to finish first, at SIGTERM or SIGINT.

    The first signal raises KeyboardInterrupt, which no `except Exception` stops, and leaves the
    context as TrainingInterrupted. Where the exception is swallowed, as in a destructor, it is
    raised again until the context is left. A second signal acts as it did before. Signals outside
    the main thread keep acting as before.

    Args:
        name: of what is done in it, for the message.

    Raises:
        TrainingInterrupted: on leaving.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_requested = False
        self._handlers = _Handlers(self._receive)
        self._alarm = _Handlers(self._raise, (signal.SIGALRM,))

    def __enter__(self) -> "Interruptible":
        self._handlers.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_requested:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        self._alarm.restore()
        self._handlers.restore()
        # Also where the exception was swallowed to the end, or became another one.
        if self._is_requested or kind is KeyboardInterrupt:
            message = f"Interrupted during {self._name}; what was finished before is kept."
            raise TrainingInterrupted(message) from error

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._is_requested = True
        self._handlers.restore()
        self._alarm.install()
        signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS, _RETRY_SECONDS)
        self._raise(number, frame)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not _is_swallowing(frame):
            raise KeyboardInterrupt


class _Handlers:
    """One handler for several signals, until it is taken back; in the main thread only."""

    def __init__(
        self,
        receive: Callable[[int, FrameType | None], None],
        numbers: Sequence[signal.Signals] = _SIGNALS,
    ) -> None:
        self._receive, self._numbers = receive, numbers
        self._previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._receive) for s in self._numbers}

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def _is_swallowing(frame: FrameType | None) -> bool:
    """Whether Python would print and forget an exception.

    It does in destructors, in callbacks of weak references, and in those of the garbage collector,
    of which JAX has one.
    """
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        is_weak = frame.f_globals.get("__name__") in ("weakref", "_weakrefset")
        if is_weak or frame.f_code.co_name == "__del__" or frame.f_code in callbacks:
            return True
        frame = frame.f_back
    return False
