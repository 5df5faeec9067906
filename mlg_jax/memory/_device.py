"""Peak memory as counted by a device's allocator."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class AllocatorPeak:
    """A device allocator's counters before and after a call, in bytes."""

    in_use_bytes: int  # before the call: its arguments and every other live array
    earlier_peak_bytes: int  # peak of the process before the call
    peak_bytes: int  # peak of the process after the call; it cannot be reset

    @property
    def is_of_call(self) -> bool:
        """Whether the call set a new peak; otherwise its own peak is unknown."""
        return self.peak_bytes > self.earlier_peak_bytes

    @property
    def call_bytes(self) -> int | None:
        """Bytes that the call added at its peak; None unless it set a new peak."""
        return self.peak_bytes - self.in_use_bytes if self.is_of_call else None


def allocator_peak(call: Callable[[], Any], device: Any = None) -> AllocatorPeak | None:
    """Runs `call()` to completion and reads the allocator's counters before and after.

    Compile beforehand: a first call would also count constants and autotuning.

    Args:
        call: a function without arguments.
        device: the device whose allocator is read; None for the default device.

    Returns:
        The counters. None if the device has none (CPU); `call` is then not run.

    Raises:
        TypeError: `call` is not a function.

    Examples:
        >>> from mlg_jax.memory import allocator_peak
        >>> if jax.default_backend() == "cpu":
        ...     assert allocator_peak(lambda: jnp.ones(8)) is None
    """
    if not callable(call):
        raise TypeError(f"`call` must be a function; got {call!r}.")
    device = jax.local_devices()[0] if device is None else device
    before = _counts(device)
    if before is None:
        return None
    jax.block_until_ready(call())
    after = _counts(device)
    return None if after is None else AllocatorPeak(*before, after[1])


def _counts(device: Any) -> tuple[int, int] | None:
    counts = device.memory_stats() or {}
    if "bytes_in_use" not in counts or "peak_bytes_in_use" not in counts:
        return None
    return counts["bytes_in_use"], counts["peak_bytes_in_use"]
