"""The allocator's own peak, where the device keeps count."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class AllocatorPeak:
    """What a device's allocator counted around a call, in bytes."""

    in_use_bytes: int  # before the call: its arguments, and everything else that was alive
    earlier_peak_bytes: int  # the highest before the call, since the process began
    peak_bytes: int  # the highest after it; allocators cannot be reset

    @property
    def is_of_call(self) -> bool:
        """Whether the call set a new peak; if not, all we know is that it stayed below one."""
        return self.peak_bytes > self.earlier_peak_bytes

    @property
    def call_bytes(self) -> int | None:
        """What the call added at its peak; None unless it set a new one."""
        return self.peak_bytes - self.in_use_bytes if self.is_of_call else None


def allocator_peak(call: Callable[[], Any], device: Any = None) -> AllocatorPeak | None:
    """Runs `call()`, waits for it, and reads the allocator before and after.

    Compile first: constants and autotuning of a first call would be counted.

    Args:
        call: a function without arguments.
        device: whose allocator; None for the default device.

    Returns:
        The counts; None, and nothing is run, where the device keeps none (CPU).

    Raises:
        TypeError: `call` is no function.

    Example:
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
