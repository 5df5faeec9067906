"""The network of a packed file and its variables; their conversion to ordinary kernels."""

from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util

from mlg_jax.engine._fit import bounded_records, naming_misfits
from mlg_jax.engine._manifest import Manifest
from mlg_jax.engine._network import check_tensors, network_of
from mlg_jax.export import PackedModel, built_kernels, to_torch, unpack_variables
from mlg_jax.kernels import LayerRecord
from mlg_jax.layers import decoded_variables
from mlg_jax.models import ModelSpec


def dense_state(packed: PackedModel, *, name: str = "the packed model") -> dict[str, np.ndarray]:
    """The PyTorch state dict of a packed model, with generated kernels computed; see `to_torch`.

    Args:
        packed: from `read_packed`.
        name: the file, for messages.

    Returns:
        float32 arrays by torchvision's names.

    Raises:
        PackedFileError: the tensors do not fit the model, or the manifest is invalid.
        ValueError: the model was not made by `create_model`, or has quantised activations.
    """
    manifest = Manifest.of(packed, name)
    if not isinstance(manifest.model, ModelSpec):
        raise ValueError(
            f"`packed` must hold a model made by `create_model`, as only these have counterparts "
            f"in torchvision; got {manifest.model.module}."
        )
    network, records = _checked(packed, None, "generate", name)
    variables = decoded_variables(records, unpack_variables(packed))
    return to_torch(records, variables, architecture=type(network).__name__)


def trained_network(
    packed: PackedModel, *, model: nn.Module | None = None, name: str = "the packed model"
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a packed model with ordinary kernels, to train or to compress further.

    Generated kernels are built and quantised ones decoded, so that its logits are those of the
    packed model up to rounding.

    Args:
        packed: from `read_packed`.
        model: see `load_packed`.
        name: the file, for messages.

    Returns:
        The module, with nothing quantised, and its variables.

    Raises:
        TypeError, ValueError: `model` is not the module of the file, or activations are quantised.
        PackedFileError: the tensors do not fit the model, or the manifest is invalid.
    """
    network, records = _checked(packed, model, "auto", name)
    stored = unpack_variables(packed)
    flat = traverse_util.flatten_dict(dict(stored))
    if found := next((path for path in flat if "input_quant" in path), None):
        raise ValueError(
            f"{name} must hold a network without quantised activations; got {'/'.join(found)}."
        )
    kernels = built_kernels(records, decoded_variables(records, stored))
    for record in records:
        if record.kernel is not None:
            for factor in record.kernel.factors:
                del flat["params", *record.path, factor.name]
            flat["params", *record.path, "kernel"] = np.asarray(kernels[record.name])
    ordinary = network.spec.ordinary.create() if model is None else model
    return ordinary, traverse_util.unflatten_dict(flat)


def _checked(
    packed: PackedModel, model: nn.Module | None, implementation: str, name: str
) -> tuple[Any, tuple[LayerRecord, ...]]:
    """The network of a packed model and its layers; the tensors fit them."""
    manifest = Manifest.of(packed, name)
    if model is None and isinstance(manifest.model, ModelSpec):
        with naming_misfits(name):
            network: Any = network_of(manifest.model, None, implementation)
    else:  # errors are those of the caller's argument, not of the file
        network = network_of(manifest.model, model, implementation)
    shape = manifest.image_shape(network)
    records = bounded_records(name, network, shape, packed.nbytes)
    with naming_misfits(name, ValueError):
        check_tensors(network, shape, packed)
    return network, records
