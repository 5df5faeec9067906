"""A data set ready for training: its splits, batches and preprocessing."""

import dataclasses
import math
from collections.abc import Generator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from mlg_jax._checks import check_instance, check_integer
from mlg_jax.data._augment import Preprocessing
from mlg_jax.data._batches import (
    batch_indices,
    evaluation_indices,
    holdout_indices,
    limited_indices,
)
from mlg_jax.data._examples import Examples, Source, SubsetExamples
from mlg_jax.data._sources import open_source
from mlg_jax.data._spec import DataSpec
from mlg_jax.data._splits import Batch, ResidentSplit, Split, StreamedSplit
from mlg_jax.data._statistics import KNOWN_STATISTICS, channel_statistics

_DEFAULT_VALIDATION_SHARE = 10  # one in ten, if `num_validation` is None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """An opened data set, as returned by `load_dataset`.

    Args:
        spec: the specification it was opened with.
        class_names: names of the classes, in the order of the labels.
        image_shape: `(height, width, channels)`.
        preprocessing: `augment(key, images)` and `normalize(images)`, for use inside jit.
        train_examples: the training images on the host, without the validation images.
        train_split: serves training batches.
        validation_split: serves validation batches; None if no images are held out.
        test_examples: the test images on the host; only `test_batches` reads them.
        sharding: sharding of a batch; None uses the default device.
    """

    spec: DataSpec
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    preprocessing: Preprocessing
    train_examples: Examples
    train_split: Split
    validation_split: Split | None
    test_examples: Examples
    sharding: NamedSharding | None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def num_train(self) -> int:
        """Number of training images, without the validation images."""
        return len(self.train_split)

    @property
    def num_validation(self) -> int:
        """Number of validation images, which are held out of the training images."""
        return 0 if self.validation_split is None else len(self.validation_split)

    @property
    def steps_per_epoch(self) -> int:
        """Training batches per epoch; an incomplete last batch is dropped."""
        return self.num_train // self.spec.batch_size

    @property
    def is_resident(self) -> bool:
        """Whether the training and validation images are kept on the device."""
        return isinstance(self.train_split, ResidentSplit)

    def count_classes(self) -> np.ndarray:
        """Number of training images per class, int64 [num_classes]; reads every training label."""
        return np.bincount(self.train_examples.read_labels(), minlength=self.num_classes)

    def train_batches(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """The training batches of one epoch; they depend on `spec.seed` and `epoch` only.

        Args:
            epoch: counted from 0.
            start_step: number of batches to skip, for a run that resumes within the epoch.

        Returns:
            A generator of dictionaries of `image`, uint8 [b, h, w, c], and `label`, int32 [b], both
            on the device. Close it if you do not exhaust it.

        Raises:
            TypeError, ValueError: an argument is not an integer or is out of range.
        """
        check_integer("start_step", start_step, 0, self.steps_per_epoch)
        rows = batch_indices(self.spec.seed, epoch, self.num_train, self.spec.batch_size)
        return self.train_split.batches(rows[start_step:])

    def normalized_images(self, count: int) -> jax.Array:
        """At most `count` random training images, normalised but not augmented, `[n, h, w, c]`."""
        rows = batch_indices(self.spec.seed, 0, self.num_train, self.spec.batch_size)
        images = self.train_examples.read(rows.reshape(-1)[:count])["image"]
        return self.preprocessing.normalize(jnp.asarray(images))

    def _evaluation_batches(self, split: Split) -> Generator[Batch, None, None]:
        rows, mask = evaluation_indices(len(split), self.spec.eval_batch_size)
        return split.batches(rows, mask)

    def validation_batches(self) -> Generator[Batch, None, None]:
        """All validation images in order: `image`, `label`, `mask` (bool [b], False for padding).

        Raises:
            ValueError: the validation split is empty.
        """
        if self.validation_split is None:
            raise ValueError("`num_validation` must be >= 1 for validation batches; got 0.")
        return self._evaluation_batches(self.validation_split)

    def test_batches(self) -> Generator[Batch, None, None]:
        """All test images in order, with the keys of `validation_batches`; streamed, never kept.

        Use it once, at the end of a run, and never to select a model.
        """
        num = len(self.test_examples)
        kept = limited_indices(num, self.spec.test_limit, self.spec.split_seed)
        split = StreamedSplit(
            SubsetExamples(self.test_examples, kept),
            num_threads=self.spec.num_threads,
            sharding=self.sharding,
        )
        return self._evaluation_batches(split)


def _check_sharding(spec: DataSpec, sharding: NamedSharding | None) -> None:
    """Raises unless both batch sizes are multiples of the number of shards."""
    check_instance("sharding", sharding, (NamedSharding, type(None)))
    if sharding is None:
        return
    leading = sharding.spec[0] if len(sharding.spec) else None
    axes = leading if isinstance(leading, tuple) else () if leading is None else (leading,)
    num_shards = math.prod(sharding.mesh.shape[axis] for axis in axes)
    for name in ("batch_size", "eval_batch_size"):
        if getattr(spec, name) % num_shards:
            raise ValueError(
                f"`{name}` must be a multiple of the {num_shards} shards of a batch; "
                f"got {getattr(spec, name)}."
            )


def _hold_out(spec: DataSpec, source: Source) -> tuple[SubsetExamples, SubsetExamples]:
    """The training examples and the validation examples."""
    num_examples = len(source.train)
    num_validation = spec.num_validation
    if num_validation is None:
        num_validation = num_examples // _DEFAULT_VALIDATION_SHARE
    train, validation = holdout_indices(
        num_examples,
        num_validation,
        spec.split_seed,
        train_limit=spec.train_limit,
        validation_limit=spec.validation_limit,
    )
    if spec.batch_size > len(train):
        raise ValueError(
            f"`batch_size` must be at most the number of training images, {len(train)}; "
            f"got {spec.batch_size}."
        )
    return SubsetExamples(source.train, train), SubsetExamples(source.train, validation)


def _preprocessing(spec: DataSpec, train: Examples) -> Preprocessing:
    """Statistics from `spec`, or known ones, or computed from the training images."""
    mean, std = spec.mean, spec.std
    if mean is None or std is None:
        known = KNOWN_STATISTICS.get(spec.name)
        own_mean, own_std = known or channel_statistics(train, np.arange(len(train)))
        mean, std = mean or own_mean, std or own_std
    channels = train.image_shape[-1]
    for name, value in (("mean", mean), ("std", std)):
        if len(value) != channels:
            raise ValueError(
                f"`{name}` must have {channels} entries, one per channel; got {value!r}."
            )
    return Preprocessing(mean=mean, std=std, spec=spec.augment)


def _is_resident(spec: DataSpec, *splits: Examples) -> bool:
    """Whether to keep the splits on the device."""
    if spec.residency != "auto":
        return spec.residency == "always"
    num_bytes = sum(len(split) * math.prod(split.image_shape) for split in splits)
    return num_bytes <= spec.resident_limit_bytes


def load_dataset(spec: DataSpec, *, sharding: NamedSharding | None = None) -> Dataset:
    """Opens a data set, holds out a validation split, and moves both to the device if they fit.

    Args:
        spec: the data set and how to serve it.
        sharding: sharding of a batch: its first axis over the devices of a mesh, which may span
            several processes. None uses the default device.

    Returns:
        The data set. Its test images are checked now, but only `Dataset.test_batches` serves them.

    Raises:
        FileNotFoundError: the data set is missing; the message says how to get it.
        OSError: a download failed.
        TypeError, ValueError: `spec` does not match the data set, or the data are invalid.

    Examples:
        >>> spec = DataSpec(name="digits", num_validation=200, batch_size=64)
        >>> dataset = load_dataset(spec)
        >>> batch = next(dataset.train_batches(epoch=0))
        >>> dataset.preprocessing.normalize(batch["image"]).shape
        (64, 8, 8, 1)
    """
    _check_sharding(spec, sharding)
    source = open_source(spec)
    train, validation = _hold_out(spec, source)
    kind = ResidentSplit if _is_resident(spec, train, validation) else StreamedSplit

    def split(examples: Examples) -> Split:
        return kind(examples, num_threads=spec.num_threads, sharding=sharding)

    return Dataset(
        spec=spec,
        class_names=source.class_names,
        image_shape=train.image_shape,
        preprocessing=_preprocessing(spec, train),
        train_examples=train,
        train_split=split(train),
        validation_split=split(validation) if len(validation) else None,
        test_examples=source.test,
        sharding=sharding,
    )
