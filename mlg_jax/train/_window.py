"""Metrics of the steps since the last log line."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mlg_jax.train._metrics import MetricSums, add_sums
from mlg_jax.train._step import StepReport


class Window:
    """Sums of metrics on the device, and a clock for the images per second."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._sums: MetricSums | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Excludes all time until now from `images_per_second`."""
        self._num_timed_examples = 0
        self._start_seconds = time.perf_counter()

    def add(self, report: StepReport, *, num_examples: int, is_timed: bool) -> None:
        """Adds a step. An untimed one (which compiles) is waited for, so as not to time it."""
        self._sums = report.sums if self._sums is None else add_sums(self._sums, report.sums)
        self.num_steps += 1
        if is_timed:
            self._num_timed_examples += num_examples
            return
        jax.block_until_ready(self._sums)
        self.restart_clock()

    def means(self) -> dict[str, float]:
        """The averages, and `images_per_second` if a step was timed; waits for the device."""
        if self._sums is None:
            return {}
        means = self._sums.means()
        seconds = time.perf_counter() - self._start_seconds
        if self._num_timed_examples:
            means["images_per_second"] = self._num_timed_examples / seconds
        return means

    def to_json(self) -> dict[str, Any] | None:
        """The exact sums, for `from_json`; None if there is no step yet. Waits for the device."""
        if self._sums is None:
            return None
        totals, weight = jax.device_get((self._sums.totals, self._sums.weight))
        numbers = {name: float(total) for name, total in totals.items()}
        return {"num_steps": self.num_steps, "totals": numbers, "weight": float(weight)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> "Window":
        """A window that continues with stored sums, bit for bit, and a new clock."""
        window = cls()
        if stored is not None:
            # NumPy scalars, which can be added to arrays that span several processes.
            exact: Any = jax.tree.map(np.float32, (stored["totals"], stored["weight"]))
            window._sums = MetricSums(totals=exact[0], weight=exact[1])
            window.num_steps = stored["num_steps"]
        return window
