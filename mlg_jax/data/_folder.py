"""Image folders: `train/<class>/*.png|jpg|jpeg` and `test/<class>/...`."""

import os

import numpy as np

from mlg_jax.data._examples import Examples, HostBatch
from mlg_jax.data._images import decode_image
from mlg_jax.data._source import Source
from mlg_jax.data._spec import DataSpec

_SUFFIXES = (".png", ".jpg", ".jpeg")
_CHANNELS = 3  # grey files are converted


def _directories(root: str) -> list[str]:
    """Sorted names of the directories in `root` that are not hidden."""
    if not os.path.isdir(root):
        raise FileNotFoundError(
            "`data_dir` must have the directories train/<class> and test/<class> of PNG or JPEG "
            f"files; there is no {root}."
        )
    return sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != "."
    )


class FolderExamples(Examples):
    """The image files of one split, sorted by class and name, converted to RGB.

    Args:
        root: the directory that has one directory a class.
        class_names: in the order of the labels.
        size: side in pixels; None is that of the first image, which all must then have.

    Raises:
        ValueError: a class unknown to `class_names`, or no images.
    """

    def __init__(self, root: str, class_names: tuple[str, ...], size: int | None) -> None:
        unknown = [name for name in _directories(root) if name not in class_names]
        if unknown:
            raise ValueError(
                f"{root} must have classes of the training images only, {sorted(class_names)}; "
                f"got {unknown}."
            )
        self._size = size
        self._paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(class_names):
            files = _image_files(os.path.join(root, name))
            self._paths += files
            labels += [label] * len(files)
        if not labels:
            raise ValueError(f"{root} must have PNG or JPEG files in its directories; got none.")
        self._labels = np.array(labels, np.int32)
        height, width, channels = self._decode(0).shape
        self._shape = (height, width, channels)

    def _decode(self, index: int) -> np.ndarray:
        path = self._paths[index]
        return decode_image(path, channels=_CHANNELS, size=self._size, where=path)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, 3)`."""
        return self._shape

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, indices: np.ndarray) -> HostBatch:
        """See `Examples.read`."""
        images = np.empty((len(indices), *self._shape), np.uint8)
        for target, index in zip(images, indices, strict=True):
            image = self._decode(int(index))
            if image.shape != self._shape:
                raise ValueError(
                    "`image_size` must be set for images that differ in size; "
                    f"got {list(image.shape)} in {self._paths[index]} and {list(self._shape)} in "
                    f"{self._paths[0]}."
                )
            target[...] = image
        return {"image": images, "label": self._labels[indices]}

    def read_labels(self) -> np.ndarray:
        """See `Examples.read_labels`."""
        return self._labels


def _image_files(directory: str) -> list[str]:
    """Sorted paths of the images in `directory`; none if there is no such directory."""
    if not os.path.isdir(directory):
        return []
    names = sorted(os.listdir(directory))
    return [os.path.join(directory, name) for name in names if name.lower().endswith(_SUFFIXES)]


def open_folder(spec: DataSpec) -> Source:
    """The classes are the directories of `train`, sorted."""
    train, test = (os.path.join(spec.directory, split) for split in ("train", "test"))
    names = tuple(_directories(train))
    _directories(test)  # so that a run does not end with the news that there is no test split
    if not names:
        raise ValueError(f"{train} must have one directory a class; got none.")
    return Source(
        class_names=names,
        train=FolderExamples(train, names, spec.image_size),
        open_test=lambda: FolderExamples(test, names, spec.image_size),
    )
