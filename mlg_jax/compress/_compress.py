"""Compression of a trained network to a given size: measure, allocate, project, distil."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from mlg_jax._checks import check_real
from mlg_jax._types import Array, Float, Key
from mlg_jax.compress._allocate import BITS_PER_KB, Allocation, allocate, budget_bits
from mlg_jax.compress._distill import DistillationSpec, distill
from mlg_jax.compress._fit import DEFAULT_PROJECTION, fit_generated
from mlg_jax.compress._sensitivity import (
    LayerChoices,
    Sensitivity,
    check_compressible,
    compressible,
    measure_sensitivity,
)
from mlg_jax.compress._spec import AllocationSpec
from mlg_jax.generation import ProjectionSpec

_DEFAULT = AllocationSpec()
_CODED = 0.5  # a file is not expected to be smaller than this share of its network's counted bits


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A compressed network, with the measurements and the allocation that led to it."""

    model: nn.Module
    variables: dict[str, Any]
    allocation: Allocation
    sensitivity: Sensitivity  # for `allocate` at other budgets


def compress(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Float[Array, "n h w c"],
    *,
    target_kb: float,
    key: Key,
    allocation: AllocationSpec = _DEFAULT,
    projection: ProjectionSpec = DEFAULT_PROJECTION,
    distillation: DistillationSpec | None = None,
    num_bytes: Callable[[nn.Module, dict[str, Any]], int] | None = None,
    on_report: Callable[[LayerChoices], None] = lambda layer: None,
) -> Compressed:
    """Compresses a trained network to a given size, without labels.

    Calls `measure_sensitivity`, `allocate`, `fit_generated` and, with `distillation`, `distill`.

    Args:
        model: a trained network with ordinary kernels: from `create_model`, or any Linen module of
            plain Flax layers.
        variables: its parameters and statistics.
        images: `[N, H, W, C]`, at least some hundreds of real images, normalised for the network.
        target_kb: largest size in KB of 1024 bytes; unless `num_bytes` is given, as `size_report`
            counts it: with norms and classifier, without running statistics.
        key: seeds projection (`l2`) and distillation.
        allocation: the candidates for each layer, and the effort spent on measuring them.
        projection: as in `fit_generated`.
        distillation: a short training on the original's predictions; None skips it.
        num_bytes: what `target_kb` bounds, computed from the compressed network and its variables,
            such as the size of the file that `save_packed` writes. The network is then projected
            at least twice, and trained again in the rare case that training makes it larger.
        on_report: called with each layer once its sensitivity is measured.

    Returns:
        The compressed network, its variables, the allocation and the measurements.

    Raises:
        TypeError, ValueError: `images` is empty, `target_kb` cannot be reached, `model` has
            generated kernels, or `variables` do not fit it.

    Examples:
        >>> small = compress(model, variables, images, target_kb=64.0,
        ...                  key=jax.random.key(0))  # doctest: +SKIP
        >>> save_packed("small.mlg", small.model, small.variables)  # doctest: +SKIP

    Reference: the projection, https://arxiv.org/abs/2108.11430, section 3.
    """
    fixed_bits = check_compressible(model, variables, images, allocation)
    shapes = (r.kernel_shape for r in compressible(model, images))
    smallest = fixed_bits + sum(map(allocation.smallest_bits, shapes))
    check_real("target_kb", target_kb, 0.0, exclusive_minimum=True)
    if num_bytes is None or target_kb * BITS_PER_KB < smallest * _CODED:
        budget_bits(target_kb, smallest)  # raises before anything is measured
    measured = measure_sensitivity(model, variables, images, spec=allocation, on_report=on_report)

    def projected(kb: float) -> Compressed:
        chosen = allocate(measured, target_kb=kb)
        small, small_variables = fit_generated(
            model,
            variables,
            images,
            generation=chosen.generation,
            weight_bits=chosen.weight_bits,
            projection=projection,
            key=jax.random.fold_in(key, 0),
        )
        return Compressed(small, small_variables, chosen, measured)

    def trained(small: Compressed) -> Compressed:
        assert distillation is not None
        new = distill(
            small.model,
            small.variables,
            model,
            variables,
            images,
            spec=distillation,
            key=jax.random.fold_in(key, 1),
        )
        return dataclasses.replace(small, variables=new)

    training = None if distillation is None else trained
    if num_bytes is None:
        small = projected(target_kb)
        return small if training is None else training(small)
    return _within(target_kb, measured.smallest_bits / BITS_PER_KB, projected, training, num_bytes)


def _within(
    target_kb: float,
    smallest_kb: float,
    projected: Callable[[float], Compressed],
    trained: Callable[[Compressed], Compressed] | None,
    num_bytes: Callable[[nn.Module, dict[str, Any]], int],
) -> Compressed:
    """The trained network whose bytes are at most `target_kb`.

    What the bytes exceed the counted bits by (statistics, manifest, less the coding of frequent
    codes) is measured, and changes little from one allocation to the next.
    """

    def excess(small: Compressed) -> float:
        return num_bytes(small.model, small.variables) / 1024 - target_kb

    small = projected(max(target_kb, smallest_kb))
    kb = small.allocation.kb - excess(small)
    while True:
        if kb < smallest_kb:
            reachable = math.ceil((target_kb + smallest_kb - kb) * 100) / 100
            raise ValueError(
                f"`target_kb` must be at least about {reachable}, the smallest reachable with "
                f"these choices; got {target_kb!r}."
            )
        small = projected(kb)
        over = excess(small)
        if over <= 0 and trained is not None:
            small = trained(small)
            over = excess(small)
        if over <= 0:
            return small
        kb = min(kb, small.allocation.kb) - over
