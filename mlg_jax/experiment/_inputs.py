"""Inputs of the stages: data, the dtype of computation, matching checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import NamedSharding

from mlg_jax.config import ConfigError
from mlg_jax.data import Dataset, DataSpec, load_dataset
from mlg_jax.train import CheckpointError


def load_data(spec: DataSpec, sharding: NamedSharding) -> Dataset:
    """Opens the data set; raises ConfigError if it cannot be read."""
    try:
        return load_dataset(spec, sharding=sharding)
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"config.data: {error}") from error


def has_checkpoint(directory: Path) -> bool:
    """Whether there is a complete step: only these have names of digits alone."""
    return any(path.name.isdigit() for path in directory.glob("*"))


def compute_dtype(name: str) -> Any:
    """The dtype for a name of a configuration; None stands for float32."""
    if name == "auto":
        return jnp.bfloat16 if jax.default_backend() == "gpu" else None
    return None if name == "float32" else jnp.dtype(name)


def check_fits(directory: Path, variables: Mapping[str, Any], expected: Any) -> None:
    """Raises CheckpointError that names the first array with a wrong name or shape."""
    found = {k: np.shape(v) for k, v in traverse_util.flatten_dict(variables, sep="/").items()}
    wanted = {k: v.shape for k, v in traverse_util.flatten_dict(expected, sep="/").items()}
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise CheckpointError(
                f"The checkpoint in {directory} belongs to another model: {name} is "
                f"{found.get(name, 'absent')} there and {wanted.get(name, 'absent')} here."
            )
