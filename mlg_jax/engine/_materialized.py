"""Converts a packed model to ordinary kernels, for runtimes that cannot generate them."""

from typing import Any

import numpy as np

from mlg_jax.engine._fit import bounded_records, naming_misfits
from mlg_jax.engine._manifest import Manifest
from mlg_jax.engine._network import check_tensors, network_of
from mlg_jax.export import PackedModel, to_torch, unpack_variables
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
    with naming_misfits(name):
        network: Any = network_of(manifest.model, None, "generate")
    shape = manifest.image_shape(network)
    records = bounded_records(name, network, shape, packed.nbytes)
    with naming_misfits(name, ValueError):
        check_tensors(network, shape, packed)
    variables = decoded_variables(records, unpack_variables(packed))
    return to_torch(records, variables, architecture=type(network).__name__)
