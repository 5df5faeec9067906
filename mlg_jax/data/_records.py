"""Reads data sets that tensorflow-datasets prepared as array_record, without TensorFlow."""

import os
import re
from typing import Any

import numpy as np

from mlg_jax._image_files import DataError, decode_image
from mlg_jax.data._cifar import ARCHIVES, prepare_cifar, prepare_command
from mlg_jax.data._examples import Examples, HostBatch, Source, check_labels
from mlg_jax.data._spec import DataSpec

# The splits used as (training, test) images, if they are not `train` and `test`. tf_flowers has a
# single split, which the caller divides.
_SPLITS = {
    "oxford_flowers102": ("train+validation", "test"),
    "tf_flowers": ("train", "train"),
    "imagenette": ("train", "validation"),
    "imagenet2012": ("train", "validation"),  # the labels of its test split are not public
}
_DEFAULT_VARIANTS = {"imagenette": "full-size-v2"}
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_CHUNK = 256  # records whose labels are read at once


def _command(spec: DataSpec) -> str:
    """The shell command that prepares the data set in the directory where `spec` expects it."""
    if spec.name in ARCHIVES:
        return prepare_command(spec.name, spec.directory)
    name = spec.name if spec.variant is None else f"{spec.name}/{spec.variant}"
    return f"tfds build {name} --file_format=array_record --data_dir={spec.directory}"


def _missing(spec: DataSpec, directory: str, reason: str) -> FileNotFoundError:
    """The error for a data set that cannot be read; its message says how to prepare it."""
    needs = "" if spec.name in ARCHIVES else " (once, where TensorFlow is installed)"
    return FileNotFoundError(
        f"The data set {spec.name!r} must be prepared as array_record; {reason} in {directory}. "
        f"Prepare it{needs} with: {_command(spec)}"
    )


def _version_directory(root: str) -> str | None:
    """The directory of the latest completely prepared version in `root`; None if there is none."""
    if not os.path.isdir(root):
        return None
    versions = [name for name in os.listdir(root) if _VERSION.fullmatch(name)]
    complete = [
        name for name in versions if os.path.isfile(os.path.join(root, name, "dataset_info.json"))
    ]
    highest = max(complete, key=lambda name: tuple(map(int, name.split("."))), default=None)
    return None if highest is None else os.path.join(root, highest)


def _find(spec: DataSpec) -> str:
    """The directory of the prepared data set; CIFAR is prepared first if `spec` allows it."""
    variant = spec.variant or _DEFAULT_VARIANTS.get(spec.name)
    root = os.path.join(spec.directory, spec.name, *([variant] if variant else []))
    if spec.name in ARCHIVES and spec.download and _version_directory(root) is None:
        prepare_cifar(spec.name, spec.directory)
    found = _version_directory(root)
    if found is None:
        raise _missing(spec, root, "nothing was found")
    return found


class _EncodedRecords:
    """Random access to the label and the encoded image of each record of a split.

    Other features of the records are ignored.
    """

    def __init__(self, builder: Any, split: str) -> None:
        import tensorflow_datasets as tfds

        self._records = builder.as_data_source(
            split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        wanted = {name: builder.info.features[name] for name in ("image", "label")}
        self._features = tfds.features.FeaturesDict(wanted)
        self._decoders = {"image": tfds.decode.SkipDecoding()}

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: np.ndarray) -> list[dict[str, Any]]:
        """The records at `indices` [n]: `image` (encoded bytes) and `label` (int)."""
        records = self._records.__getitems__([int(index) for index in indices])
        return [
            self._features.deserialize_example_np(record, decoders=self._decoders)
            for record in records
        ]


class RecordExamples(Examples):
    """One split of a prepared data set.

    Args:
        records: random access to labels and encoded images.
        image_shape: `(height, width, channels)` of every image, after resizing.
        size: side in pixels to resize to; None keeps the size of the images.
        num_classes: labels must be in `[0, num_classes)`.
        where: name of the split in error messages.

    Raises:
        DataError: the split is empty.
    """

    def __init__(
        self,
        records: _EncodedRecords,
        *,
        image_shape: tuple[int, int, int],
        size: int | None,
        num_classes: int,
        where: str,
    ) -> None:
        if not len(records):
            raise DataError(f"{where} must not be empty; got no records.")
        self._records = records
        self._shape = image_shape
        self._size = size
        self._num_classes = num_classes
        self._where = where

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return self._shape

    def __len__(self) -> int:
        return len(self._records)

    def _labels_of(self, records: list[Any]) -> np.ndarray:
        labels = np.array([record["label"] for record in records], np.int32)
        check_labels(self._where, labels, self._num_classes)
        return labels

    def read(self, indices: np.ndarray) -> HostBatch:
        """See `Examples.read`."""
        records = self._records.read(indices)
        images = np.empty((len(records), *self._shape), np.uint8)
        for target, record, index in zip(images, records, indices, strict=True):
            where = f"{index} of {self._where}"
            image = decode_image(
                record["image"], channels=self._shape[-1], size=self._size, where=where
            )
            if image.shape != self._shape:
                raise DataError(
                    f"The image {where} must have the shape {list(self._shape)}; "
                    f"got {list(image.shape)}."
                )
            target[...] = image
        return {"image": images, "label": self._labels_of(records)}

    def read_labels(self) -> np.ndarray:
        """See `Examples.read_labels`."""
        starts = range(0, len(self), _CHUNK)
        chunks = (np.arange(start, min(start + _CHUNK, len(self))) for start in starts)
        return np.concatenate([self._labels_of(self._records.read(chunk)) for chunk in chunks])


def _image_shape(
    spec: DataSpec, stored: tuple[int | None, ...]
) -> tuple[tuple[int, int, int], int | None]:
    """The shape of the images after resizing, and the side to resize to (None: no resizing)."""
    height, width, channels = stored
    if spec.image_size is not None:
        size = None if (height, width) == (spec.image_size,) * 2 else spec.image_size
        return (spec.image_size, spec.image_size, channels or 3), size
    if height is None or width is None:
        raise ValueError(
            f"`image_size` must be an integer for {spec.name!r}, whose images differ in size; "
            "got None."
        )
    return (height, width, channels or 3), None


def _open_builder(spec: DataSpec, directory: str) -> Any:
    """The tensorflow-datasets builder of a prepared directory; must be array_record."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(directory)
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise _missing(spec, directory, f"the format {file_format!r} was found")
    splits = _SPLITS.get(spec.name, ("train", "test"))
    absent = sorted(set("+".join(splits).split("+")) - set(builder.info.splits))
    if absent:
        raise _missing(spec, directory, f"the splits {sorted(builder.info.splits)} were found")
    return builder


def open_records(spec: DataSpec) -> Source:
    """Opens a data set of tensorflow-datasets; downloads and prepares CIFAR if `spec` allows it.

    Raises:
        FileNotFoundError: the data set is missing, incomplete, or not in the format array_record.
        OSError, ValueError: see `prepare_cifar`.
    """
    directory = _find(spec)
    builder = _open_builder(spec, directory)
    names = tuple(builder.info.features["label"].names)
    shape, size = _image_shape(spec, builder.info.features["image"].shape)

    def examples(split: str) -> RecordExamples:
        return RecordExamples(
            _EncodedRecords(builder, split),
            image_shape=shape,
            size=size,
            num_classes=len(names),
            where=f"split {split!r} in {directory}",
        )

    train, test = _SPLITS.get(spec.name, ("train", "test"))
    return Source(class_names=names, train=examples(train), test=examples(test))
