"""A packed model with ordinary kernels, for runtimes that generate none."""

from typing import Any

import jax
import numpy as np
from flax import traverse_util

from mlg_jax.engine._fit import bounded_records, naming_misfits
from mlg_jax.engine._manifest import Manifest
from mlg_jax.engine._network import decoded_network
from mlg_jax.export import PackedFileError, PackedModel, to_torch, unpack_variables


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
    with naming_misfits(name):
        network: Any = decoded_network(manifest.model, implementation="generate", is_folded=False)
    images = manifest.preprocessing
    shape = network.input_shape[1:] if images is None else images.image_shape
    records = bounded_records(name, network, shape, packed.nbytes)
    image = jax.ShapeDtypeStruct((1, *shape), np.float32)
    wanted = jax.eval_shape(network.init, jax.eval_shape(lambda: jax.random.key(0)), image)
    variables = unpack_variables(packed)
    if _shapes(variables) != _shapes(wanted):
        raise PackedFileError(f"{name}: its tensors must be those of its model.")
    return to_torch(records, variables)


def _shapes(variables: dict) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables).items()}
