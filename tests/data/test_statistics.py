"""Per-channel statistics against NumPy, over several chunks."""

import numpy as np
import pytest

from mlg_jax.data._examples import ArrayExamples
from mlg_jax.data._spec import TFDS_NAMES
from mlg_jax.data._statistics import KNOWN_STATISTICS, channel_statistics
from tests.data._tiny import random_images


def examples(images):
    return ArrayExamples(images, np.zeros(len(images), int), num_classes=1, where="here")


def test_against_numpy_over_several_chunks():
    images = random_images(700)
    images[..., 1] //= 2
    chosen = np.arange(0, 700, 2)
    mean, std = channel_statistics(examples(images), chosen)
    np.testing.assert_allclose(mean, (images[chosen] / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images[chosen] / 255).std(axis=(0, 1, 2)), rtol=1e-12)


class Recording(ArrayExamples):
    """Records the indices that are read."""

    def read(self, indices):
        self.indices = np.concatenate([getattr(self, "indices", np.zeros(0, int)), indices])
        return super().read(indices)


@pytest.mark.parametrize("period", [1, 10], ids=["ordered", "in_turn"])
def test_images_of_large_sets_are_spread_over_the_classes(period):
    """Ten classes with one grey level each, sorted by class or interleaved."""
    num = 40960
    labels = np.arange(num) // (num // 10) if period == 1 else np.arange(num) % 10
    images = (labels * 25).astype(np.uint8)[:, None, None, None]
    source = Recording(images, labels, num_classes=10, where="here")
    (mean,), (std,) = channel_statistics(source, np.arange(num))
    # Sampling 4,096 of them leaves a standard error of std / 64.
    pixels = images / 255
    assert abs(mean - pixels.mean()) < 4 * pixels.std() / 64
    assert abs(std - pixels.std()) < 4 * pixels.std() / 64
    assert len(np.unique(source.indices)) == len(source.indices) == 4096
    assert (np.diff(source.indices) > 0).all()
    again = channel_statistics(source, np.arange(num))
    assert again == ((mean,), (std,))


def test_all_of_4096_images_are_read_in_their_order():
    source = Recording(random_images(4096, size=1), np.zeros(4096, int), num_classes=1, where="")
    channel_statistics(source, np.arange(4096))
    np.testing.assert_array_equal(source.indices, np.arange(4096))


def test_a_constant_channel_has_the_deviation_of_one_grey_level():
    images = np.full((3, 2, 2, 1), 51, np.uint8)
    mean, std = channel_statistics(examples(images), np.arange(3))
    np.testing.assert_allclose(mean + std, [0.2, 1 / 255])


def test_every_named_set_has_constants():
    assert set(KNOWN_STATISTICS) == set(TFDS_NAMES)
    for mean, std in KNOWN_STATISTICS.values():
        assert len(mean) == len(std) and all(0 < v < 1 for v in mean + std)
