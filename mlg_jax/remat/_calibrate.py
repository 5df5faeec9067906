"""Capacities from densities: how full the activations of a model are on real batches."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from flax import traverse_util

from mlg_jax._checks import check_real
from mlg_jax._types import Array
from mlg_jax.remat._policy import DENSITIES, INPUT


def measure_densities(
    model: nn.Module, variables: Any, x: Array, *, rngs: Mapping[str, Any] | None = None
) -> dict[str, Array]:
    """Share of non-zero entries of what each checkpointed segment of `model` is given, in training.

    Args:
        model: with a policy as its `remat`; runs without it here.
        variables: as from `model.init`.
        x: `[N, H, W, C]`, a batch.
        rngs: the model's random streams.

    Returns:
        Density, a scalar in [0, 1], by name of the segment. Pure: may be compiled.
    """
    mutable = [*(k for k in variables if k != "params"), DENSITIES]
    _, updated = model.apply(variables, x, train=True, mutable=mutable, rngs=dict(rngs or {}))
    flat = traverse_util.flatten_dict(dict(updated.get(DENSITIES, {})), sep="/")
    return {name.removesuffix(f"/{INPUT}"): density for name, density in flat.items()}


def choose_capacities(
    densities: Mapping[str, Any], *, margin: float = 0.1, largest: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Capacities with room for `margin` times the densities more, rounded up to 1 / 64.

    Rounded, so that a small drift does not compile the step again.

    Args:
        densities: by name of the segment, e.g. the largest of several batches.
        margin: share of the density that is added, >= 0.
        largest: capacities that must not shrink.

    Returns:
        Capacities in (0, 1] by name.

    Raises:
        TypeError, ValueError: a margin below 0.
    """
    check_real("margin", margin, 0.0)
    values = jax.device_get(dict(densities))
    chosen = {}
    for name, density in values.items():
        steps = -(-float(density) * (1 + margin) * 64 // 1)
        chosen[name] = max(min(max(steps, 1) / 64, 1.0), (largest or {}).get(name, 0.0))
    return chosen
