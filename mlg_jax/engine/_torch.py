"""Imports a PyTorch state dict into a given model, or finds the model that it fits."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlg_jax.export import from_torch, torch_num_classes
from mlg_jax.layers import layer_records, variable_shapes
from mlg_jax.models import MODELS, STEMS, ModelSpec, ResNet

State = Mapping[str, np.ndarray]


def import_torch(
    state: State,
    spec: ModelSpec,
    *,
    options: Mapping[str, str],
    input_shape: Sequence[int] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Creates a model with the variables of a PyTorch network.

    Args:
        state: arrays by name, from `read_torch`.
        spec: the model; its number of classes is replaced by that of the state dict.
        options: for error messages, the prefixes with which users choose a `name`, `stem` and
            `width`, such as `{"name": "--model "}`.
        input_shape: `[N, H, W, C]` of the images; None takes the model's own.

    Returns:
        The model and its variables.

    Raises:
        ValueError: the state dict belongs to another network. If that is one of `MODELS`, the
            message says how to choose it; nothing is compiled to find it.
    """
    try:
        return _imported(state, spec, input_shape)
    except ValueError as error:
        other = next(_fitting(state, spec), None)
        if other is None:
            raise
        found = {name: (getattr(spec, name), getattr(other, name)) for name in options}
        wanted = [f"{options[k]}{new}" for k, (old, new) in found.items() if old != new]
        raise ValueError(
            f"These tensors are those of {other.name} with stem {other.stem} and width "
            f"{other.width:g}; use {' '.join(wanted)}."
        ) from error


def _imported(
    state: State, spec: ModelSpec, input_shape: Sequence[int] | None
) -> tuple[Any, dict[str, Any]]:
    any_classes = dataclasses.replace(spec, num_classes=1).create()
    kind = type(any_classes).__name__
    num_classes = torch_num_classes(
        state, layer_records(any_classes, input_shape), architecture=kind
    )
    model: Any = dataclasses.replace(spec, num_classes=num_classes).create()
    records, template = layer_records(model, input_shape), variable_shapes(model, input_shape)
    return model, from_torch(state, records, template, architecture=kind)


def _fitting(state: State, spec: ModelSpec) -> Iterator[ModelSpec]:
    """Specs of other models that these arrays fit, the most similar first."""
    widths = dict.fromkeys((spec.width, 1.0))
    stems = sorted(STEMS, key=lambda stem: stem != spec.stem)
    for width, stem, name in itertools.product(widths, stems, MODELS):
        other = dataclasses.replace(spec, name=name, stem=stem, width=width, num_classes=1)
        if _is_alike(state, other) and _fits(state, other):
            yield other


def _is_alike(state: State, spec: ModelSpec) -> bool:
    """Whether the names look like the model's; spares most models the tracing, a second each."""
    blocks = {match[0] for name in state if (match := re.search(r"\blayer\d+\.\d+\.", name))}
    model = spec.create()
    if isinstance(model, ResNet):
        return len(blocks) == sum(model.stage_sizes)
    return not blocks and any("features." in name for name in state)


def _fits(state: State, spec: ModelSpec) -> bool:
    """Whether the names and shapes are those of the model, for any number of classes."""
    try:
        model = spec.create()
        kind = type(model).__name__
        num_classes = torch_num_classes(state, layer_records(model), architecture=kind)
        records = layer_records(dataclasses.replace(spec, num_classes=num_classes).create())
        from_torch(state, records, {}, architecture=kind)
    except ValueError:
        return False
    return True
