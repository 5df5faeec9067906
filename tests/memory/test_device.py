"""Allocator counters of a device that has them and of one that does not."""

import jax
import jax.numpy as jnp
import pytest

from mlg_jax.memory import AllocatorPeak, allocator_peak


class Device:
    """A device whose allocator holds 100 bytes and peaked at 300."""

    def __init__(self, stats=("bytes_in_use", "peak_bytes_in_use")):
        self.counts = {"bytes_in_use": 100, "peak_bytes_in_use": 300}
        self.names = stats

    def memory_stats(self):
        return None if self.names is None else {name: self.counts[name] for name in self.names}

    def run(self, num_bytes):
        peak = max(self.counts["peak_bytes_in_use"], self.counts["bytes_in_use"] + num_bytes)
        self.counts["peak_bytes_in_use"] = peak
        return jnp.zeros(())


def test_a_new_peak_is_attributed_to_the_call():
    device = Device()
    peak = allocator_peak(lambda: device.run(450), device)
    assert peak == AllocatorPeak(in_use_bytes=100, earlier_peak_bytes=300, peak_bytes=550)
    assert peak.is_of_call and peak.call_bytes == 450


def test_below_an_earlier_peak_the_bytes_of_the_call_are_unknown():
    device = Device()
    peak = allocator_peak(lambda: device.run(150), device)
    assert peak.peak_bytes == 300 and not peak.is_of_call and peak.call_bytes is None


@pytest.mark.parametrize("stats", [None, (), ("bytes_in_use",)], ids=str)
def test_without_counters_nothing_is_run(stats):
    assert allocator_peak(lambda: 1 / 0, Device(stats)) is None


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only CPU has no counters")
def test_cpu_has_no_counters():
    assert allocator_peak(lambda: 1 / 0) is None


@pytest.mark.gpu
def test_gpu_counts():
    size = 2**28
    call = jax.jit(lambda: jnp.ones(size))
    jax.block_until_ready(call.lower().compile())
    peak = allocator_peak(call)
    assert peak.call_bytes >= 4 * size


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(TypeError, match="`call` must be a function; got 3"):
        allocator_peak(3)
