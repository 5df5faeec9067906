"""Arrays are checked when they are given, and read in the order requested."""

import numpy as np
import pytest

from mlg_jax.data._examples import ArrayExamples, DataError, SubsetExamples, read_all
from tests.data._tiny import random_images

LABELS = np.arange(600) % 3


def make(images=None, labels=LABELS, num_classes=3):
    images = random_images(600) if images is None else images
    return ArrayExamples(images, labels, num_classes=num_classes, where="here")


def test_read_and_subset():
    images = random_images(600)
    examples = make(images)
    subset = SubsetExamples(examples, np.array([9, 4, 7]))
    batch = subset.read(np.array([2, 0]))
    np.testing.assert_array_equal(batch["image"], images[[7, 9]])
    np.testing.assert_array_equal(batch["label"], LABELS[[7, 9]])
    np.testing.assert_array_equal(subset.read_labels(), LABELS[[9, 4, 7]])
    assert len(subset) == 3 and subset.image_shape == (6, 6, 3)
    assert batch["label"].dtype == np.int32


@pytest.mark.parametrize("num_threads", [1, 3])
def test_read_all_keeps_the_order_over_chunks(num_threads):
    images = random_images(600)  # more than two chunks of 256
    batch = read_all(make(images), num_threads)
    np.testing.assert_array_equal(batch["image"], images)
    np.testing.assert_array_equal(batch["label"], LABELS)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"images": random_images(600) / 255.0},
            TypeError,
            r"`images` of here must be uint8, 0 to 255 \(.*\); got float64",
        ),
        (
            {"images": random_images(600)[..., 0]},
            ValueError,
            r"`images` of here must have the shape \[n, height, width, 1 or 3\]; got \[600, 6, 6\]",
        ),
        ({"images": random_images(600, channels=2)}, ValueError, "1 or 3"),
        ({"images": random_images(0)}, ValueError, r"must not be empty; got \[0, 6, 6, 3\]"),
        (
            {"labels": np.where(np.arange(600) == 5, 3, 0)},
            ValueError,
            r"`labels` of here must be in \[0, 2\]; got 3 at index 5",
        ),
        ({"labels": LABELS - 1}, ValueError, "got -1 at index 0"),
        ({"labels": LABELS / 1.0}, TypeError, r"integers of the shape \[n\]; got float64 \[600\]"),
        ({"labels": np.eye(3, dtype=int)}, TypeError, r"got int64 \[3, 3\]"),
        ({"labels": LABELS[:-1]}, ValueError, "as many as its images, 600; got 599"),
    ],
)
def test_arrays_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        make(**arguments)


@pytest.mark.bad_input
def test_data_errors_are_one_line():
    assert str(DataError("the file a\nb.png\r\nis wrong")) == "the file a b.png is wrong"


@pytest.mark.bad_input
def test_an_error_in_a_reading_thread_is_raised():
    class Broken(ArrayExamples):
        def read(self, indices):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        read_all(Broken(random_images(600), LABELS, num_classes=3, where="here"), 2)
