"""The student as a packed file: what a finished experiment hands on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn

from mlg_jax.config import ConfigError
from mlg_jax.data import Dataset
from mlg_jax.engine import ImagePreprocessing, save_packed

PACKED_FILE = Path("packed/student.mlg")  # in the work directory


def export_student(
    directory: Path,
    model: nn.Module,
    variables: Mapping[str, Any],
    dataset: Dataset,
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """Writes the packed file.

    Args:
        directory: the experiment's.
        model: the student.
        variables: trained.
        dataset: what it was trained on: names of classes, size and statistics of images.
        metrics: what it reaches.

    Returns:
        `file`, relative to `directory`, and `bytes`.

    Raises:
        ConfigError: a factor that its bits cannot hold.
    """
    path = directory / PACKED_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    preprocessing = ImagePreprocessing(
        image_size=dataset.image_shape[:2],
        mean=dataset.preprocessing.mean,
        std=dataset.preprocessing.std,
    )
    try:
        num_bytes = save_packed(
            path,
            model,
            variables,
            preprocessing=preprocessing,
            class_names=dataset.class_names,
            metrics=metrics,
        )
    except ValueError as error:
        raise ConfigError(f"The student cannot be packed: {error}") from error
    return {"file": str(PACKED_FILE), "bytes": num_bytes}
