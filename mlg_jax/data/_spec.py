"""Frozen, hashable specifications of a data set: source, splits, batches and augmentation."""

import dataclasses
import os

from mlg_jax._checks import check_choice, check_instance, check_integer, check_real

# Read through tensorflow-datasets; the first two can be downloaded and prepared by this package.
TFDS_NAMES = (
    "cifar10",
    "cifar100",
    "mnist",
    "fashion_mnist",
    "svhn_cropped",
    "oxford_flowers102",
    "stanford_dogs",
    "cars196",
    "tf_flowers",
    "imagenette",
    "imagenet2012",
)
EMBEDDED_NAMES = ("digits", "synthetic")  # need no directory
FILE_NAMES = ("npz", "image_folder")  # need `data_dir`
NAMES = TFDS_NAMES + EMBEDDED_NAMES + FILE_NAMES
CROP_BORDERS = ("black", "reflection")
ALTERNATING = "alternating"
RESIDENCIES = ("auto", "always", "never")


def _check_optional_count(name: str, value: int | None, minimum: int) -> None:
    """Raises unless `value` is None or an integer of at least `minimum`."""
    if value is not None:
        check_integer(name, value, minimum)


def _check_channels(name: str, value: tuple[float, ...] | None, *, is_scale: bool) -> None:
    """Raises unless `value` is None or one number per channel; a scale must be positive."""
    check_instance(name, value, (tuple, type(None)))
    if value is not None and len(value) not in (1, 3):
        raise ValueError(f"`{name}` must have 1 or 3 entries, one per channel; got {value!r}.")
    for entry in value or ():
        check_real(name, entry, 0.0, exclusive_minimum=is_scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """Random transformations of training images, on uint8 pixels; all are off by default.

    Args:
        crop_padding: width in pixels of the border added before a random crop back to the original
            size (customarily 4 for CIFAR); None is off.
        crop_border: what the border holds: `black` or `reflection`.
        horizontal_flip: True mirrors each image with probability 1/2; `alternating` mirrors it in
            every second epoch, half of the images in the odd ones.
        cutout_size: side in pixels of a square filled with the data set's mean colour; None is off.
        min_area: turns on random resized crops: the smallest area of a crop as a fraction of the
            image, in (0, 1]. A crop has an aspect ratio of 3/4 to 4/3 and is resized to the
            original size. None is off; cannot be combined with `crop_padding`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Reference: Cutout, https://arxiv.org/abs/1708.04552; resized crop,
    https://arxiv.org/abs/1409.4842; alternating flips, https://arxiv.org/abs/2404.00498.
    """

    crop_padding: int | None = None
    crop_border: str = "black"
    horizontal_flip: bool | str = False
    cutout_size: int | None = None
    min_area: float | None = None

    def __post_init__(self) -> None:
        _check_optional_count("crop_padding", self.crop_padding, 1)
        check_choice("crop_border", self.crop_border, CROP_BORDERS)
        check_instance("horizontal_flip", self.horizontal_flip, (bool, str))
        if isinstance(self.horizontal_flip, str):
            check_choice("horizontal_flip", self.horizontal_flip, (ALTERNATING,))
        _check_optional_count("cutout_size", self.cutout_size, 1)
        if self.min_area is not None:
            check_real("min_area", self.min_area, 0.0, 1.0, exclusive_minimum=True)
            if self.crop_padding is not None:
                raise ValueError(
                    f"`crop_padding` must be None when `min_area` is set; got {self.crop_padding}."
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticSpec:
    """One random pattern per class plus noise per image: easily learnt by a small network.

    Args:
        num_classes: number of classes, at least 2.
        num_train: number of training images, validation images included.
        num_test: number of test images.
        channels: 1 or 3.
        noise: standard deviation of the pixel noise, in grey levels (0 to 255).
        seed: seed of the patterns and the noise.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    num_classes: int = 10
    num_train: int = 2048
    num_test: int = 512
    channels: int = 3
    noise: float = 32.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("num_classes", self.num_classes, 2)
        check_integer("num_train", self.num_train, 2)
        check_integer("num_test", self.num_test, 1)
        if self.channels not in (1, 3):
            raise ValueError(f"`channels` must be 1 or 3; got {self.channels!r}.")
        check_real("noise", self.noise, 0.0)
        check_integer("seed", self.seed, 0, 2**63 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A data set, its splits, and how its batches are served.

    Args:
        name: one of `NAMES`.
        data_dir: for data sets of tensorflow-datasets, its data directory (None: `$TFDS_DATA_DIR`,
            or `~/tensorflow_datasets` if that is not set); for `npz` and `image_folder`, the
            directory of the files; unused by `digits` and `synthetic`.
        variant: configuration of a tensorflow-datasets builder that has several, such as
            `160px-v2` for imagenette; None uses the default of the builder.
        image_size: side in pixels; the central square of each image is resized to it. None keeps
            the original size, which must be the same for all images.
        num_validation: number of training images held out for validation; None holds out a tenth.
        train_limit: use a random subset of this many training images, chosen after the validation
            images are held out; None uses all.
        validation_limit: the same for the validation images.
        test_limit: the same for the test images.
        batch_size: training images per step, over all devices.
        eval_batch_size: validation or test images per step, over all devices.
        augment: random transformations of training images.
        mean: mean of the pixels scaled to [0, 1], one number per channel; None uses the statistics
            of the data set.
        std: their standard deviation, likewise.
        seed: seed of the order of the training images.
        split_seed: seed of the validation split and of random subsets. Separate from `seed`, so
            that teacher and student share the same splits whatever the seeds of their runs.
        residency: `always` keeps training and validation images on the device as uint8, `never`
            streams them with Grain, `auto` keeps them if they fit in `resident_limit_bytes`.
        resident_limit_bytes: limit for `auto`, in bytes per device.
        num_threads: number of threads that read and decode images.
        download: whether to download cifar10 and cifar100 if they are missing; other data sets are
            never downloaded.
        synthetic: specification for the name `synthetic` only; None is `SyntheticSpec()`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    name: str
    data_dir: str | None = None
    variant: str | None = None
    image_size: int | None = None
    num_validation: int | None = None
    train_limit: int | None = None
    validation_limit: int | None = None
    test_limit: int | None = None
    batch_size: int = 128
    eval_batch_size: int = 256
    augment: AugmentSpec = AugmentSpec()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0
    split_seed: int = 0
    residency: str = "auto"
    resident_limit_bytes: int = 2 << 30
    num_threads: int = 4
    download: bool = True
    synthetic: SyntheticSpec | None = None

    def __post_init__(self) -> None:
        check_choice("name", self.name, NAMES)
        check_choice("residency", self.residency, RESIDENCIES)
        check_instance("augment", self.augment, AugmentSpec)
        check_instance("download", self.download, bool)
        self._check_place()
        self._check_counts()
        _check_channels("mean", self.mean, is_scale=False)
        _check_channels("std", self.std, is_scale=True)

    def _check_place(self) -> None:
        """Checks arguments that apply to some names only."""
        check_instance("data_dir", self.data_dir, (str, type(None)))
        check_instance("variant", self.variant, (str, type(None)))
        check_instance("synthetic", self.synthetic, (SyntheticSpec, type(None)))
        if self.name in FILE_NAMES and self.data_dir is None:
            raise ValueError(f"`data_dir` must be a directory for {self.name!r}; got None.")
        if self.name not in TFDS_NAMES and self.variant is not None:
            raise ValueError(f"`variant` must be None for {self.name!r}; got {self.variant!r}.")
        if self.name != "synthetic" and self.synthetic is not None:
            raise ValueError(f"`synthetic` must be None for {self.name!r}; got {self.synthetic!r}.")

    def _check_counts(self) -> None:
        """Checks integers and their ranges."""
        _check_optional_count("image_size", self.image_size, 1)
        _check_optional_count("num_validation", self.num_validation, 0)
        for name in ("train_limit", "validation_limit", "test_limit"):
            _check_optional_count(name, getattr(self, name), 1)
        for name in ("batch_size", "eval_batch_size", "resident_limit_bytes", "num_threads"):
            check_integer(name, getattr(self, name), 1)
        for name in ("seed", "split_seed"):
            check_integer(name, getattr(self, name), 0, 2**63 - 1)

    @property
    def directory(self) -> str:
        """`data_dir`, or its default, with `~` expanded."""
        default = os.environ.get("TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets"))
        return os.path.expanduser(default if self.data_dir is None else self.data_dir)
