"""Calibration of bitmap capacities: activation densities on real batches, plus a margin."""

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
    """Measures the density of the input of each checkpointed segment of `model` in training mode.

    The density is the share of non-zero entries. The function is pure and can be compiled.

    Args:
        model: a model whose `remat` attribute is a `RematSpec`; its policy is not applied here.
        variables: as returned by `model.init`.
        x: a batch, `[N, H, W, C]`.
        rngs: the model's random streams.

    Returns:
        The densities, scalars in [0, 1], by segment name.
    """
    mutable = [*(k for k in variables if k != "params"), DENSITIES]
    _, updated = model.apply(variables, x, train=True, mutable=mutable, rngs=dict(rngs or {}))
    flat = traverse_util.flatten_dict(dict(updated.get(DENSITIES, {})), sep="/")
    return {name.removesuffix(f"/{INPUT}"): density for name, density in flat.items()}


def choose_capacities(
    densities: Mapping[str, Any], *, margin: float = 0.1, largest: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Chooses capacities `(1 + margin) * density`, rounded up to a multiple of 1/64.

    They are rounded so that a small drift of the densities does not recompile the training step.

    Args:
        densities: by segment name, e.g. the maximum over several batches.
        margin: relative safety margin, >= 0.
        largest: lower bounds of the capacities, e.g. the current ones.

    Returns:
        The capacities, in (0, 1], by segment name.

    Raises:
        TypeError: `margin` is not a number.
        ValueError: `margin` is negative or not finite.
    """
    check_real("margin", margin, 0.0)
    values = jax.device_get(dict(densities))
    chosen = {}
    for name, density in values.items():
        steps = -(-float(density) * (1 + margin) * 64 // 1)
        chosen[name] = max(min(max(steps, 1) / 64, 1.0), (largest or {}).get(name, 0.0))
    return chosen
