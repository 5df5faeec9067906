"""The implementation of the student's generated layers, as configured or measured."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlg_jax.config import MEASURED, ConfigError, ExperimentConfig
from mlg_jax.experiment._inputs import compute_dtype
from mlg_jax.layers import tune_implementations
from mlg_jax.models import ImplementationChoice
from mlg_jax.train import FINGERPRINT_FILE

FILE = "implementations.json"


def student_implementation(
    config: ExperimentConfig,
    directory: Path,
    student: Callable[..., nn.Module],
    image_shape: Sequence[int],
    num_devices: int,
) -> ImplementationChoice:
    """The implementation option with which the student is created.

    Args:
        config: the experiment.
        directory: the work directory; one that is bound to the experiment keeps the measured
            choices, so that a resumed run stays bit-identical.
        student: creates the student, given an `implementation`.
        image_shape: height, width, channels.
        num_devices: the number of devices that share a batch.

    Raises:
        ConfigError: `measured` in a run of several processes.
    """
    implementation = config.generation.implementation
    if implementation != MEASURED:
        return implementation
    if jax.process_count() > 1:
        raise ConfigError(
            "generation.implementation must be fixed or 'auto' in a run of several processes, "
            f"since each would make its own choices; got {MEASURED!r}."
        )
    rows = config.data.batch_size // config.student.train.accumulation_steps // num_devices
    dtype: Any = compute_dtype(config.model.dtype) or jnp.float32
    return tune_implementations(
        student(implementation="auto"),
        (rows, *image_shape),
        is_training=True,
        dtype=dtype,
        cache=directory / FILE if (directory / FINGERPRINT_FILE).exists() else None,
    )
