"""SIGTERM and SIGINT as requests to stop: after the current step, or at once; status 75."""

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
_RETRY_SECONDS = 1.0  # leaves time for clean-up


class TrainingInterrupted(RuntimeError):
    """SIGTERM or SIGINT arrived; progress was saved where possible, so the run can be resumed.

    Attributes:
        step: number of updates made before the interruption; None if it was not during training.
        exit_code: the recommended exit status: 75, `EX_TEMPFAIL`, "try again later".
    """

    exit_code = 75

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class StopRequest:
    """A context manager that turns the first SIGTERM or SIGINT into a flag.

    A second signal has its previous effect. A first signal that arrives too late to be reported by
    `is_agreed` is raised again when the context ends. Outside the main thread, where Python does
    not allow handlers to be installed, signals keep their previous effect.
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
        """Whether the run should stop after this step; the same on all processes.

        Args:
            is_sync_point: whether several processes may communicate at this step (they must all
                pass the same value); at other steps they return False. A single process needs no
                sync point.
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
    """A context manager for work that SIGTERM or SIGINT may abort at any point.

    The first signal raises KeyboardInterrupt, which `except Exception` does not catch; on leaving
    the context it becomes TrainingInterrupted. If the exception is swallowed, for example in a
    destructor, it is raised again every second until the context is left. A second signal has its
    previous effect, as have all signals outside the main thread.

    Args:
        name: description of the work for the error message.

    Raises:
        TrainingInterrupted: when the context is left after a signal.
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
        # Even if the exception was swallowed for good, or replaced by another one.
        if self._is_requested or kind is KeyboardInterrupt:
            message = f"Interrupted during {self._name}; completed work is kept."
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
    """Installs one handler for several signals and restores the old ones; main thread only."""

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
    """Whether Python would print and discard an exception raised in `frame`.

    It does so in destructors, in callbacks of weak references, and in callbacks of the garbage
    collector (JAX registers one).
    """
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        is_weak = frame.f_globals.get("__name__") in ("weakref", "_weakrefset")
        if is_weak or frame.f_code.co_name == "__del__" or frame.f_code in callbacks:
            return True
        frame = frame.f_back
    return False
