"""Opens a data set by its name; defines those that are arrays: digits, synthetic and npz."""

import logging
import os
import reprlib
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

from mlg_jax._image_files import DataError
from mlg_jax.data._examples import (
    ArrayExamples,
    Examples,
    Source,
    check_label_type,
)
from mlg_jax.data._folder import open_folder
from mlg_jax.data._images import array_examples
from mlg_jax.data._records import open_records
from mlg_jax.data._spec import TFDS_NAMES, DataSpec, SyntheticSpec
from mlg_jax.data._test_split import split_source

_DIGITS_FACTOR = 15  # maps scikit-learn's grey levels 0 to 16 to 0 to 240 without rounding
_PATTERN_SIZE = 4  # side in pixels of the coarse pattern of a synthetic class
_NPZ_KEYS = ("images", "labels")
_NPZ_NAMES = "class_names"  # an optional third array of an npz file
# Raised for zip files and headers that are damaged, encrypted, or claim more than fits in memory.
_NPZ_ERRORS = (
    ValueError,
    TypeError,
    EOFError,
    OSError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)
_LOGGER = logging.getLogger(__name__)


def open_digits(spec: DataSpec) -> Source:
    """scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, part of its wheel.

    A fifth of each class, chosen with a fixed seed, is the test split.
    """
    import sklearn.datasets

    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = np.rint(pixels * _DIGITS_FACTOR).astype(np.uint8).reshape(-1, 8, 8, 1)
    examples = array_examples(
        images, labels, num_classes=10, size=spec.image_size, where="the digits"
    )
    names = tuple(str(digit) for digit in range(10))
    return split_source(Source(class_names=names, train=examples, test=examples))


def _class_patterns(spec: SyntheticSpec, size: int) -> np.ndarray:
    """One pattern per class in grey levels, float64 [num_classes, size, size, channels]."""
    rng = np.random.default_rng((spec.seed, 0))
    shape = (spec.num_classes, _PATTERN_SIZE, _PATTERN_SIZE, spec.channels)
    coarse = 128.0 + 48.0 * rng.standard_normal(shape)
    position = np.arange(size) * _PATTERN_SIZE // size
    return coarse[:, position][:, :, position]


def _synthetic_examples(spec: DataSpec, stream: int) -> ArrayExamples:
    """Training (`stream` 1) or test (2) images; labels cycle, so that the classes are balanced."""
    synthetic = spec.synthetic or SyntheticSpec()
    patterns = _class_patterns(synthetic, spec.image_size or 32)
    num = synthetic.num_train if stream == 1 else synthetic.num_test
    labels = np.arange(num) % synthetic.num_classes
    rng = np.random.default_rng((synthetic.seed, stream))
    noise = rng.standard_normal((num, *patterns.shape[1:]), np.float32) * synthetic.noise
    images = np.clip(np.rint(patterns[labels] + noise), 0, 255).astype(np.uint8)
    return ArrayExamples(
        images, labels, num_classes=synthetic.num_classes, where="the synthetic set"
    )


def open_synthetic(spec: DataSpec) -> Source:
    """The data set of `SyntheticSpec`; images are 32 x 32 unless `image_size` is set."""
    num_classes = (spec.synthetic or SyntheticSpec()).num_classes
    return Source(
        class_names=tuple(f"class_{index}" for index in range(num_classes)),
        train=_synthetic_examples(spec, 1),
        test=_synthetic_examples(spec, 2),
    )


def _read_npz(path: str) -> dict[str, np.ndarray]:
    """The images, labels and class names of an npz file; pickled objects are refused."""
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"`data_dir` must have the files train.npz and test.npz; there is no {path}."
        )
    try:
        # Opened here, because np.load does not close a file that is not an npz.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            names = sorted(archive.files)
            arrays = {key: archive[key] for key in (*_NPZ_KEYS, _NPZ_NAMES) if key in names}
    except _NPZ_ERRORS as error:
        raise DataError(f"{path} must be an npz file without objects; {error}.") from error
    if not arrays.keys() >= set(_NPZ_KEYS):
        raise DataError(f"{path} must have the arrays {list(_NPZ_KEYS)}; got {names}.")
    return arrays


def _npz_class_names(arrays: dict[str, np.ndarray], path: str) -> tuple[str, ...] | None:
    """The class names stored in the file; None if it has none."""
    if _NPZ_NAMES not in arrays:
        return None
    names = arrays[_NPZ_NAMES]
    if names.ndim != 1:
        raise DataError(f"`{_NPZ_NAMES}` of {path} must have the shape [n]; got {[*names.shape]}.")
    return tuple(n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in names)


def _numbered_classes(labels: np.ndarray, path: str) -> tuple[str, ...]:
    """Class names "0" to "n - 1" for a file without any; each label must occur."""
    check_label_type(path, labels)
    found = np.unique(labels)
    if not np.array_equal(found, np.arange(len(found))):
        raise DataError(
            f"`labels` of {path} must be 0 to n - 1, each at least once, unless `{_NPZ_NAMES}` "
            f"lists the classes; got {len(found):,} different labels from {found[0]} to "
            f"{found[-1]}. To renumber them: np.unique(labels, return_inverse=True)[1]."
        )
    return tuple(map(str, found))


def _warn_of_empty_classes(names: tuple[str, ...], labels: np.ndarray, path: str) -> None:
    """Warns of named classes that have no image."""
    empty = np.setdiff1d(np.arange(len(names)), labels)
    if empty.size:
        message = "%s: %s of the %s `class_names` have no image; the first is %r."
        _LOGGER.warning(message, path, f"{len(empty):,}", f"{len(names):,}", names[empty[0]])


def open_npz(spec: DataSpec) -> Source:
    """`train.npz` and `test.npz`: `images` [n, h, w, c], `labels` [n], optionally `class_names`.

    Without `class_names`, the training labels must be 0 to n - 1, each at least once. With them, a
    class may have no image, which logs a warning.
    """
    paths = [os.path.join(spec.directory, f"{split}.npz") for split in ("train", "test")]
    train, test = map(_read_npz, paths)
    given = _npz_class_names(train, paths[0])
    names = _numbered_classes(train["labels"], paths[0]) if given is None else given
    if (others := _npz_class_names(test, paths[1])) not in (None, names):
        raise DataError(
            f"`{_NPZ_NAMES}` of {paths[1]} must be those of {paths[0]} in the same order; "
            f"got {reprlib.repr(others)}."
        )

    def examples(arrays: dict[str, np.ndarray], path: str) -> Examples:
        return array_examples(
            arrays["images"],
            arrays["labels"],
            num_classes=len(names),
            size=spec.image_size,
            where=path,
        )

    source = Source(
        class_names=names, train=examples(train, paths[0]), test=examples(test, paths[1])
    )
    _warn_of_empty_classes(names, train["labels"], paths[0])
    return source


def open_tfds(spec: DataSpec) -> Source:
    """A prepared data set of tensorflow-datasets."""
    source = open_records(spec)
    return split_source(source) if spec.name == "tf_flowers" else source


SOURCES: dict[str, Callable[[DataSpec], Source]] = {
    **dict.fromkeys(TFDS_NAMES, open_tfds),
    "digits": open_digits,
    "synthetic": open_synthetic,
    "npz": open_npz,
    "image_folder": open_folder,
}


def open_source(spec: DataSpec) -> Source:
    """Opens the data set of `spec` and checks both splits; arrays are read, image files are not.

    Raises:
        FileNotFoundError: the data set is missing; the message says where it was expected and how
            to prepare it.
        TypeError, DataError: the data are invalid.
    """
    source = SOURCES[spec.name](spec)
    expected, found = source.train.image_shape, source.test.image_shape
    if found != expected:
        raise DataError(
            f"The test images of {spec.name!r} must have the shape of the training images, "
            f"{list(expected)}; got {list(found)}."
        )
    return source
