"""Data sets on the host: random access to the labelled uint8 images of each split."""

import abc
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mlg_jax._image_files import DataError

HostBatch = dict[str, np.ndarray]  # image: uint8 [n, h, w, c]; label: int32 [n]

_CHUNK = 256  # images read by one thread at a time


def check_images(where: str, images: np.ndarray) -> None:
    """Raises unless `images` is uint8 `[n, h, w, c]`, with 1 or 3 channels, and not empty."""
    if images.dtype != np.uint8:
        raise TypeError(
            f"`images` of {where} must be uint8, 0 to 255 (scale and round floating-point images "
            f"first); got {images.dtype}."
        )
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise DataError(
            f"`images` of {where} must have the shape [n, height, width, 1 or 3]; "
            f"got {list(images.shape)}."
        )
    if not images.size:
        raise DataError(f"`images` of {where} must not be empty; got {list(images.shape)}.")


def check_label_type(where: str, labels: np.ndarray) -> None:
    """Raises TypeError unless `labels` are integers `[n]`."""
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise TypeError(
            f"`labels` of {where} must be integers of the shape [n]; "
            f"got {labels.dtype} {list(labels.shape)}."
        )


def check_labels(where: str, labels: np.ndarray, num_classes: int) -> None:
    """Raises unless `labels` are integers `[n]` in `[0, num_classes)`."""
    check_label_type(where, labels)
    is_wrong = (labels < 0) | (labels >= num_classes)
    if is_wrong.any():
        index = int(np.argmax(is_wrong))
        raise DataError(
            f"`labels` of {where} must be in [0, {num_classes - 1}]; "
            f"got {labels[index]} at index {index}."
        )


class Examples(abc.ABC):
    """Random access to the labelled images of one split, in a fixed order."""

    @property
    @abc.abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)` of every image."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, indices: np.ndarray) -> HostBatch:
        """The images and labels at `indices` [n], in that order; thread-safe."""

    @abc.abstractmethod
    def read_labels(self) -> np.ndarray:
        """All labels, int32 [len(self)]; decodes no image."""


class ArrayExamples(Examples):
    """Images in host memory.

    Args:
        images: uint8 [n, h, w, c].
        labels: integers [n].
        num_classes: labels must be in `[0, num_classes)`.
        where: name of the source in error messages.

    Raises:
        TypeError, DataError: an array has the wrong dtype or shape, a label is out of range, or
            the numbers of images and labels differ.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, *, num_classes: int, where: str
    ) -> None:
        check_images(where, images)
        check_labels(where, labels, num_classes)
        if len(images) != len(labels):
            raise DataError(
                f"`labels` of {where} must be as many as its images, {len(images)}; "
                f"got {len(labels)}."
            )
        self._images = images
        self._labels = labels.astype(np.int32)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        _, height, width, channels = self._images.shape
        return height, width, channels

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, indices: np.ndarray) -> HostBatch:
        """See `Examples.read`."""
        return {"image": self._images[indices], "label": self._labels[indices]}

    def read_labels(self) -> np.ndarray:
        """See `Examples.read_labels`."""
        return self._labels


class SubsetExamples(Examples):
    """The examples of another split at `indices`, renumbered from 0."""

    def __init__(self, examples: Examples, indices: np.ndarray) -> None:
        self._examples = examples
        self._indices = indices

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self._examples.image_shape

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: np.ndarray) -> HostBatch:
        """See `Examples.read`."""
        return self._examples.read(self._indices[indices])

    def read_labels(self) -> np.ndarray:
        """See `Examples.read_labels`."""
        return self._examples.read_labels()[self._indices]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """An opened data set, before a validation split is held out.

    Args:
        class_names: names of the classes, in the order of the labels.
        train: the training examples, validation examples included.
        test: the test examples; checked when they are opened, but read only at the end of a run.
    """

    class_names: tuple[str, ...]
    train: Examples
    test: Examples


def read_all(examples: Examples, num_threads: int) -> HostBatch:
    """All examples in order, as one pair of arrays, read by `num_threads` threads."""
    num = len(examples)
    images = np.empty((num, *examples.image_shape), np.uint8)
    labels = np.empty((num,), np.int32)

    def fill(indices: np.ndarray) -> None:
        part = examples.read(indices)
        images[indices] = part["image"]
        labels[indices] = part["label"]

    visit_chunks(fill, num, num_threads)
    return {"image": images, "label": labels}


def visit_chunks(visit: Callable[[np.ndarray], None], num: int, num_threads: int) -> None:
    """Calls `visit` with consecutive chunks of `arange(num)`, in `num_threads` threads.

    If several calls fail, the error of the first chunk is raised.
    """
    starts = range(0, num, _CHUNK)
    chunks = (np.arange(start, min(start + _CHUNK, num)) for start in starts)
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(visit, chunks):
            pass
