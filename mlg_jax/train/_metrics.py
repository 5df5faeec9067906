"""Averages of metrics, accumulated on the device."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


class MetricSums(struct.PyTreeNode):
    """Weighted sums of metrics and of their weights, float32 scalars on the device."""

    totals: dict[str, jax.Array]  # sum of weight * metric
    weight: jax.Array  # sum of weights: the number of unmasked examples

    def means(self) -> dict[str, float]:
        """The averages as Python floats; waits for the device."""
        totals, weight = jax.device_get((self.totals, self.weight))
        return {name: float(total) / max(float(weight), 1e-30) for name, total in totals.items()}


def num_valid(batch: Any) -> jax.Array:
    """Number of unmasked examples: the sum of the batch's "mask", or its rows without a mask."""
    if isinstance(batch, Mapping) and "mask" in batch:
        return jnp.sum(batch["mask"].astype(jnp.float32))
    return jnp.float32(jax.tree.leaves(batch)[0].shape[0])


def weigh(metrics: Mapping[str, jax.Array], weight: jax.Array) -> MetricSums:
    """Turns the means of one batch over its unmasked examples into weighted sums.

    A batch without unmasked examples contributes zeros, even if its means are NaN.
    """
    totals = {
        name: jnp.where(weight > 0, jnp.asarray(value, jnp.float32) * weight, 0.0)
        for name, value in metrics.items()
    }
    return MetricSums(totals=totals, weight=weight)


@jax.jit
def add_sums(left: MetricSums, right: MetricSums) -> MetricSums:
    """Adds two sets of sums."""
    return jax.tree.map(jnp.add, left, right)
