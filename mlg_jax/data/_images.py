"""Examples from arrays of images of any size."""

import numpy as np

from mlg_jax._image_files import resize_images
from mlg_jax.data._examples import ArrayExamples


def array_examples(
    images: np.ndarray, labels: np.ndarray, *, num_classes: int, size: int | None, where: str
) -> ArrayExamples:
    """`ArrayExamples` of images that are first checked and then resized."""
    examples = ArrayExamples(images, labels, num_classes=num_classes, where=where)
    if size is None:
        return examples
    resized = resize_images(images, size)
    return ArrayExamples(resized, labels, num_classes=num_classes, where=where)
