"""Signals set a flag or stop the work; handlers are restored, and no signal is lost."""

import gc
import os
import signal
import time
import weakref

import pytest

from mlg_jax.train import Interruptible, TrainingInterrupted, _signals
from mlg_jax.train._signals import StopRequest

NUMBERS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def received():
    """Signals that reach the previous handlers, which are restored after each test."""
    found = []
    before = {n: signal.signal(n, lambda number, _: found.append(number)) for n in NUMBERS}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def shoot(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_a_flag_and_the_second_acts_as_before(received, number):
    with pytest.raises(ValueError, match="acted upon"), StopRequest() as stop:
        assert not stop.is_agreed(is_sync_point=False)
        shoot(number)
        assert stop.is_agreed(is_sync_point=False) and not received
        shoot(number)
        assert received == [number]
        raise ValueError("acted upon")
    assert received == [number]  # a signal that was answered is not raised again


@pytest.mark.parametrize("context", [StopRequest, lambda: Interruptible("nothing")])
def test_handlers_are_given_back(context):
    """Each signal gets its own handler back, after a normal end and after an exception."""
    before = [signal.getsignal(number) for number in NUMBERS]
    with context():
        assert all(signal.getsignal(n) != b for n, b in zip(NUMBERS, before, strict=True))
    assert [signal.getsignal(number) for number in NUMBERS] == before
    with pytest.raises(ValueError, match="x"), context():
        raise ValueError("x")
    assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_that_nobody_asked_for_is_passed_on(received, number):
    with StopRequest():
        shoot(number)
    assert received == [number]


@pytest.mark.parametrize("number", NUMBERS)
def test_what_can_stop_anywhere_stops_at_once(received, number):
    with pytest.raises(TrainingInterrupted, match="Interrupted during the report; ") as caught:
        with Interruptible("the report"):
            shoot(number)
            raise AssertionError("not reached")
    assert caught.value.exit_code == 75 and caught.value.step is None and not received


def test_a_swallowed_interruption_counts(received):
    with pytest.raises(TrainingInterrupted), Interruptible("the report"):
        try:
            shoot(signal.SIGTERM)
        except KeyboardInterrupt:
            pass
    assert not received


def test_a_swallowed_interruption_comes_again(received, monkeypatch):
    monkeypatch.setattr(_signals, "_RETRY_SECONDS", 0.05)
    alarm = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TrainingInterrupted), Interruptible("the report"):
        try:
            shoot(signal.SIGTERM)
        except KeyboardInterrupt:
            pass
        time.sleep(60)
        raise AssertionError("not reached")
    assert signal.getsignal(signal.SIGALRM) is alarm and not received
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def in_destructor():
    class Shooting:
        def __del__(self):
            shoot(signal.SIGTERM)

    Shooting()


def in_callback_of_the_collector():
    def callback(phase, info):
        if phase == "start":
            shoot(signal.SIGTERM)

    gc.collect()  # garbage of other tests, whose callbacks would also discard exceptions
    gc.callbacks.append(callback)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(callback)


def in_callback_of_a_weak_reference():
    class Key:
        """Is destroyed by the garbage collector."""

    class Signalling(weakref.WeakKeyDictionary):
        """Sends a signal while an entry is removed: the callback reads `_iterating`."""

        @property
        def _iterating(self):
            shoot(signal.SIGTERM)
            return ()

        @_iterating.setter
        def _iterating(self, value):
            pass

    key = Key()
    entries = Signalling({key: 1})
    del key
    assert not entries.data


@pytest.mark.parametrize(
    "shoot_there",
    [in_destructor, in_callback_of_the_collector, in_callback_of_a_weak_reference],
)
def test_where_python_forgets_exceptions_none_is_raised(received, monkeypatch, shoot_there):
    """An exception there would be printed (an error in tests) and lost, so it is raised later."""
    monkeypatch.setattr(_signals, "_RETRY_SECONDS", 0.05)
    reached = []
    with pytest.raises(TrainingInterrupted), Interruptible("the report"):
        shoot_there()
        reached.append("after the signal")
        time.sleep(60)
        raise AssertionError("not reached")
    assert reached and not received


def test_an_interruption_that_became_another_error_counts(received):
    with pytest.raises(TrainingInterrupted) as caught, Interruptible("the report"):
        try:
            shoot(signal.SIGINT)
        except KeyboardInterrupt:
            raise OSError("a child was interrupted") from None
    assert isinstance(caught.value.__cause__, OSError)


def test_stages_within_a_run(received):
    """An interruption within an inner context also ends the outer one."""
    with pytest.raises(TrainingInterrupted, match="during the run"), Interruptible("the run"):
        with StopRequest():
            shoot(signal.SIGTERM)
        raise AssertionError("not reached")
    with pytest.raises(TrainingInterrupted, match="during a stage"), Interruptible("the run"):
        with Interruptible("a stage"):
            shoot(signal.SIGTERM)
    assert not received
