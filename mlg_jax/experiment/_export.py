"""The student as a packed file, the product of an experiment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn

from mlg_jax.config import ConfigError
from mlg_jax.data import Dataset
from mlg_jax.engine import ImagePreprocessing, save_packed

PACKED_FILE = Path("packed/student.mlg")  # within the work directory


def export_student(
    directory: Path,
    model: nn.Module,
    variables: Mapping[str, Any],
    dataset: Dataset,
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """Writes the packed file.

    Args:
        directory: the work directory.
        model: the student.
        variables: its trained variables.
        dataset: its data set, for class names, image size and image statistics.
        metrics: recorded in the file.

    Returns:
        `{"file": path relative to `directory`, "bytes": size of the file}`.

    Raises:
        ConfigError: a factor cannot be represented in its bits.
    """
    path = directory / PACKED_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        num_bytes = save_packed(
            path,
            model,
            variables,
            preprocessing=ImagePreprocessing.of(dataset),
            class_names=dataset.class_names,
            metrics=metrics,
        )
    except ValueError as error:
        raise ConfigError(f"The student cannot be packed: {error}") from error
    return {"file": str(PACKED_FILE), "bytes": num_bytes}
