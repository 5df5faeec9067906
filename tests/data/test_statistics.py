"""Channel statistics against NumPy, over chunks."""

import numpy as np

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


def test_only_the_first_images_are_read():
    images = np.zeros((4200, 1, 1, 1), np.uint8)
    images[4096:] = 255
    assert channel_statistics(examples(images), np.arange(4200))[0] == (0.0,)


def test_a_constant_channel_has_the_deviation_of_one_grey_level():
    images = np.full((3, 2, 2, 1), 51, np.uint8)
    mean, std = channel_statistics(examples(images), np.arange(3))
    np.testing.assert_allclose(mean + std, [0.2, 1 / 255])


def test_every_named_set_has_constants():
    assert set(KNOWN_STATISTICS) == set(TFDS_NAMES)
    for mean, std in KNOWN_STATISTICS.values():
        assert len(mean) == len(std) and all(0 < v < 1 for v in mean + std)
