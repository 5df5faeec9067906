"""A packed model with ordinary kernels, for runtimes that generate none."""

from typing import Any

import numpy as np

from mlg_jax.engine._fit import bounded_records, naming_misfits
from mlg_jax.engine._manifest import Manifest
from mlg_jax.engine._network import check_tensors, network_of
from mlg_jax.export import PackedModel, to_torch, unpack_variables
from mlg_jax.layers import decoded_variables
from mlg_jax.models import ModelSpec


def dense_state(packed: PackedModel, *, name: str = "the packed model") -> dict[str, np.ndarray]:
    """The PyTorch state dict of a packed model, its kernels generated; see `to_torch`.

    Args:
        packed: from `read_packed`.
        name: of the file, for messages.

    Returns:
        float32 arrays by torchvision's names.

    Raises:
        PackedFileError: tensors or a manifest that do not fit.
        ValueError: a network with quantised activations, which has no such state dict.
    """
    manifest = Manifest.of(packed, name)
    if not isinstance(manifest.model, ModelSpec):
        raise ValueError(
            f"`packed` must be of a model of `create_model`, as only these have counterparts in "
            f"torchvision; got {manifest.model.module}."
        )
    with naming_misfits(name):
        network: Any = network_of(manifest.model, None, "generate")
    shape = manifest.image_shape(network)
    records = bounded_records(name, network, shape, packed.nbytes)
    with naming_misfits(name, ValueError):
        check_tensors(network, shape, packed)
    variables = decoded_variables(records, unpack_variables(packed))
    return to_torch(records, variables, architecture=type(network).__name__)
