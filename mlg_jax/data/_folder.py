"""Image folders: `train/<class>/*` and `test/<class>/*`, or `<class>/*`, in `IMAGE_FORMATS`."""

import collections
import itertools
import logging
import os

import numpy as np

from mlg_jax._image_files import FORMAT_NAMES, IMAGE_FORMATS, DataError, decode_image, header_size
from mlg_jax.data._examples import Examples, HostBatch, Source, visit_chunks
from mlg_jax.data._spec import DataSpec
from mlg_jax.data._test_split import split_source

_SUFFIXES = tuple(itertools.chain.from_iterable(IMAGE_FORMATS.values()))
_SPLITS = ("train", "test")
_CHANNELS = 3  # grey images are converted to RGB
_LOGGER = logging.getLogger(__name__)

Files = dict[str, list[str]]  # paths by class name, or by the reason why they are left out


class FolderExamples(Examples):
    """The image files of one split, sorted by class and name, converted to RGB.

    The header and the end of every file are checked when the split is opened. A file that looks
    damaged is decoded at once, so that a run does not fail on it later.

    Args:
        files: paths by class name; at least one.
        class_names: in the order of the labels.
        size: side in pixels to resize to; with None, all images must be as large as the first.
        num_threads: number of threads that check the files.

    Raises:
        DataError: a file cannot be read, or its size differs.
    """

    def __init__(
        self, files: Files, class_names: tuple[str, ...], *, size: int | None, num_threads: int
    ) -> None:
        self._size = size
        self._paths = [path for name in class_names for path in files.get(name, [])]
        counts = [len(files.get(name, [])) for name in class_names]
        self._labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        height, width, channels = self._decode(0).shape
        self._shape = (height, width, channels)
        visit_chunks(self._check, len(self), num_threads)

    def _decode(self, index: int) -> np.ndarray:
        path = self._paths[index]
        try:
            return decode_image(path, channels=_CHANNELS, size=self._size, where=path)
        except FileNotFoundError as error:
            raise DataError(f"{path} must stay where it is during a run; it is gone.") from error

    def _check(self, indices: np.ndarray) -> None:
        """Decodes each image whose header and last bytes do not prove that it is usable."""
        for index in indices:
            size = header_size(self._paths[index])
            if size is None or (self._size is None and size != self._shape[:2]):
                self.read(np.array([index]))

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
                raise DataError(
                    "`image_size` must be set for images that differ in size; "
                    f"got {list(image.shape)} in {self._paths[index]} and {list(self._shape)} in "
                    f"{self._paths[0]}."
                )
            target[...] = image
        return {"image": images, "label": self._labels[indices]}

    def read_labels(self) -> np.ndarray:
        """See `Examples.read_labels`."""
        return self._labels


def _list_class(directory: str, left_out: Files) -> list[str]:
    """The image files in the directory of a class; adds all other files to `left_out`."""
    images = []
    for entry in _entries(directory):
        is_hidden, is_image = entry.name.startswith("."), _is_image(entry.name)
        if entry.is_dir():
            left_out["images in sub-directories"] += images_below(entry.path)
        elif is_image and not is_hidden:
            images.append(entry.path)
        elif is_image:  # such as ._x.png, in which macOS stores metadata
            left_out["hidden images"].append(entry.path)
        elif not is_hidden:
            left_out[f"files other than {FORMAT_NAMES}"].append(entry.path)
    return images


def _list_split(root: str, left_out: Files) -> Files:
    """The images of a split by class; a directory without images (`__MACOSX`) is not a class."""
    classes: Files = {}
    for entry in _entries(root):
        if not entry.is_dir():
            left_out["images beside the classes"] += [entry.path] * _is_image(entry.name)
        elif not entry.name.startswith("."):
            images = _list_class(entry.path, left_out)
            if images:
                classes[entry.name] = images
            else:
                left_out["directories without images"].append(entry.path)
    if not classes:
        raise DataError(
            f"{root} must have one directory of {FORMAT_NAMES} files for each class; got none. "
            f"{_describe(left_out)}".rstrip()
        )
    return classes


def _entries(directory: str) -> list[os.DirEntry[str]]:
    """The entries of a directory, sorted by name."""
    with os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def images_below(directory: str) -> list[str]:
    """The image files in a directory and its sub-directories, sorted, without hidden ones."""
    return [
        os.path.join(parent, name)
        for parent, _, names in sorted(os.walk(directory))
        for name in sorted(names)
        if _is_image(name) and not name.startswith(".")
    ]


def _describe(left_out: Files) -> str:
    """One line that counts the ignored files of each kind, with an example; empty if none."""
    kinds = [
        f"{kind}: {len(paths):,} (such as {paths[0]})" for kind, paths in left_out.items() if paths
    ]
    return f"Left out: {'; '.join(kinds)}." if kinds else ""


def open_folder(spec: DataSpec) -> Source:
    """Opens an image folder; its classes are the directories of `train` with images, sorted.

    Without directories `train` and `test`, the classes stand in `data_dir` itself, and a part of
    them becomes the test split (`split_source`). One warning counts the ignored files.
    """
    left_out: Files = collections.defaultdict(list)
    root = spec.directory
    is_whole = _is_whole(root)
    found = [_list_split(path, left_out) for path in ([root] if is_whole else _split_roots(root))]
    train, test = found[0], found[-1]
    unknown = sorted(set(test) - set(train))
    if unknown:
        raise DataError(
            f"{os.path.join(root, 'test')} must have classes of the training images only, "
            f"{sorted(train)}; got {unknown}."
        )
    if message := _describe(left_out):
        _LOGGER.warning("%s: %s", spec.directory, message)
    names = tuple(train)

    def examples(files: Files) -> FolderExamples:
        return FolderExamples(files, names, size=spec.image_size, num_threads=spec.num_threads)

    if is_whole:
        everything = examples(train)
        return split_source(Source(class_names=names, train=everything, test=everything))
    return Source(class_names=names, train=examples(train), test=examples(test))


def _is_whole(root: str) -> bool:
    """Whether the classes stand in the directory itself; one of them may be called `train`."""
    splits = [path for split in _SPLITS if os.path.isdir(path := os.path.join(root, split))]
    has_classes = [path for path in splits if _has_directories(path)]
    return not has_classes and len(splits) < len(_SPLITS) and _has_directories(root)


def _has_directories(path: str) -> bool:
    return os.path.isdir(path) and any(entry.is_dir() for entry in _entries(path))


def _split_roots(root: str) -> list[str]:
    """The directories of both splits."""
    roots = [os.path.join(root, split) for split in _SPLITS]
    for path in roots:
        if not os.path.isdir(path):
            raise FileNotFoundError(
                "`data_dir` must have the directories train/<class> and test/<class>, or only "
                f"<class>, of {FORMAT_NAMES} files; there is no {path}."
            )
    return roots
