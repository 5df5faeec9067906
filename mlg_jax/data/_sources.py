"""Where examples come from, by name: arrays embedded, generated or in npz files, and the table."""

import dataclasses
import logging
import os
import reprlib
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

from mlg_jax.data._examples import (
    ArrayExamples,
    DataError,
    Examples,
    Source,
    SubsetExamples,
    check_label_type,
)
from mlg_jax.data._folder import open_folder
from mlg_jax.data._images import array_examples
from mlg_jax.data._records import open_records
from mlg_jax.data._spec import TFDS_NAMES, DataSpec, SyntheticSpec

_DIGITS_FACTOR = 15  # scikit-learn's digits are 0 to 16; times 15 they are 0 to 240, exactly
_TEST_SHARE = 0.2  # of the sets that come without a test split: digits and tf_flowers
_TEST_SEED = 0  # of that split; a constant, so that results compare across runs
_PATTERN_SIZE = 4  # side of the coarse pattern behind a synthetic class
_NPZ_KEYS = ("images", "labels")
_NPZ_NAMES = "class_names"  # the array which an npz file may have besides
# Of zip files and headers that are damaged, encrypted, or announce more than the memory holds.
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


def stratified_split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits indices so that each class gives `round(share * n)` of its `n` examples away.

    Args:
        labels: integers [n].
        share: of each class that goes to the second part, in (0, 1).
        seed: of the choice.

    Returns:
        `(kept, given)`: two sorted, disjoint int64 index arrays which together are all of them.
    """
    rng = np.random.default_rng(seed)
    is_given = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_given[members[: round(share * len(members))]] = True
    return np.flatnonzero(~is_given), np.flatnonzero(is_given)


def split_source(source: Source) -> Source:
    """Makes a fifth of each class of the training images the test split, by a fixed seed."""
    kept, given = stratified_split(source.train.read_labels(), _TEST_SHARE, _TEST_SEED)
    return dataclasses.replace(
        source,
        train=SubsetExamples(source.train, kept),
        test=SubsetExamples(source.train, given),
    )


def open_digits(spec: DataSpec) -> Source:
    """scikit-learn's handwritten digits: 1,797 grey images of 8 x 8, inside the wheel.

    A fifth of each class is the test split, by a fixed seed.
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
    """One smooth pattern a class in grey levels, float64 [num_classes, size, size, channels]."""
    rng = np.random.default_rng((spec.seed, 0))
    shape = (spec.num_classes, _PATTERN_SIZE, _PATTERN_SIZE, spec.channels)
    coarse = 128.0 + 48.0 * rng.standard_normal(shape)
    position = np.arange(size) * _PATTERN_SIZE // size
    return coarse[:, position][:, :, position]


def _synthetic_examples(spec: DataSpec, stream: int) -> ArrayExamples:
    """`stream` 1: train, 2: test; the classes take turns, so all are as frequent."""
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
    """See `SyntheticSpec`; images are 32 x 32 unless `image_size` says otherwise."""
    num_classes = (spec.synthetic or SyntheticSpec()).num_classes
    return Source(
        class_names=tuple(f"class_{index}" for index in range(num_classes)),
        train=_synthetic_examples(spec, 1),
        test=_synthetic_examples(spec, 2),
    )


def _read_npz(path: str) -> dict[str, np.ndarray]:
    """The arrays of an npz file that we know; pickled objects are refused."""
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"`data_dir` must have the files train.npz and test.npz; there is no {path}."
        )
    try:
        # Opened by us: np.load leaves its own file open when the content is no npz.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            names = sorted(archive.files)
            arrays = {key: archive[key] for key in (*_NPZ_KEYS, _NPZ_NAMES) if key in names}
    except _NPZ_ERRORS as error:
        raise DataError(f"{path} must be an npz file without objects; {error}.") from error
    if not arrays.keys() >= set(_NPZ_KEYS):
        raise DataError(f"{path} must have the arrays {list(_NPZ_KEYS)}; got {names}.")
    return arrays


def _npz_class_names(arrays: dict[str, np.ndarray], path: str) -> tuple[str, ...] | None:
    """What the file calls its classes; None if it does not say."""
    if _NPZ_NAMES not in arrays:
        return None
    names = arrays[_NPZ_NAMES]
    if names.ndim != 1:
        raise DataError(f"`{_NPZ_NAMES}` of {path} must have the shape [n]; got {[*names.shape]}.")
    return tuple(n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in names)


def _numbered_classes(labels: np.ndarray, path: str) -> tuple[str, ...]:
    """Names of classes that have none: their numbers, 0 to n - 1, of which none may be missing."""
    check_label_type(path, labels)
    found = np.unique(labels)
    if not np.array_equal(found, np.arange(len(found))):
        raise DataError(
            f"`labels` of {path} must be 0 to n - 1, each with an image, unless `{_NPZ_NAMES}` "
            f"lists the classes; got {len(found):,} different labels from {found[0]} to "
            f"{found[-1]}, which np.unique(labels, return_inverse=True)[1] renumbers."
        )
    return tuple(map(str, found))


def _warn_of_empty_classes(names: tuple[str, ...], labels: np.ndarray, path: str) -> None:
    """Logs which of the named classes have no label."""
    empty = np.setdiff1d(np.arange(len(names)), labels)
    if empty.size:
        message = "%s: %s of the %s `class_names` are without images, the first is %r."
        _LOGGER.warning(message, path, f"{len(empty):,}", f"{len(names):,}", names[empty[0]])


def open_npz(spec: DataSpec) -> Source:
    """`train.npz` and `test.npz`: `images` [n, h, w, c], `labels` [n], maybe `class_names`.

    Without names the labels of train must be 0 to n - 1, each at least once; with names, classes
    may be without images, of which a warning tells.
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
    """Finds the data set of `spec`; reads what is small, and checks both splits.

    Raises:
        FileNotFoundError: it is not there; the message says where it was looked for, and what
            prepares it.
        TypeError, DataError: what is there is not what it should be.
    """
    source = SOURCES[spec.name](spec)
    expected, found = source.train.image_shape, source.test.image_shape
    if found != expected:
        raise DataError(
            f"The test images of {spec.name!r} must have the shape of the training images, "
            f"{list(expected)}; got {list(found)}."
        )
    return source
