"""Averages of metrics that stay on the device until somebody asks."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


class MetricSums(struct.PyTreeNode):
    """Weighted sums of metrics and of their weights, float32 scalars on the device."""

    totals: dict[str, jax.Array]  # sum of weight * metric
    weight: jax.Array  # number of examples that count

    def means(self) -> dict[str, float]:
        """The averages, as numbers on the host; waits for the device."""
        totals, weight = jax.device_get((self.totals, self.weight))
        return {name: float(total) / max(float(weight), 1e-30) for name, total in totals.items()}


def num_valid(batch: Any) -> jax.Array:
    """How many examples of a batch count: the sum of its "mask" if it has one, else its rows."""
    if isinstance(batch, Mapping) and "mask" in batch:
        return jnp.sum(batch["mask"].astype(jnp.float32))
    return jnp.float32(jax.tree.leaves(batch)[0].shape[0])


def weigh(metrics: Mapping[str, jax.Array], weight: jax.Array) -> MetricSums:
    """One batch's means, each over the examples that count, as sums.

    A batch without a single such example contributes nothing, not even a NaN.
    """
    totals = {
        name: jnp.where(weight > 0, jnp.asarray(value, jnp.float32) * weight, 0.0)
        for name, value in metrics.items()
    }
    return MetricSums(totals=totals, weight=weight)


@jax.jit
def add_sums(left: MetricSums, right: MetricSums) -> MetricSums:
    """The sums over both."""
    return jax.tree.map(jnp.add, left, right)
