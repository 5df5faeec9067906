"""How a student's generated kernels are applied: as configured, or as measured here."""

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
    """What the student is created with.

    Args:
        config: of the experiment.
        directory: a claimed one remembers what was measured, so that a run resumes to its bits.
        student: `create_model` but for the implementation.
        image_shape: height, width, channels.
        num_devices: that share a batch.

    Raises:
        ConfigError: measured by several processes.
    """
    implementation = config.generation.implementation
    if implementation != MEASURED:
        return implementation
    if jax.process_count() > 1:
        raise ConfigError(
            "generation.implementation must be fixed or 'auto' where several processes train, as "
            f"each would measure its own; got {MEASURED!r}."
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
