"""Every augmented image is a valid outcome, checked by an exhaustive search in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax.data import (
    AugmentSpec,
    Preprocessing,
    alternating_flip,
    augment_images,
    evaluation_views,
    normalize_images,
    random_crop,
    random_cutout,
    random_flip,
    random_resized_crop,
)
from tests.data import _tiny

KEY = jax.random.key(0)


def random_images(num, size=6):
    return jnp.asarray(_tiny.random_images(num, size=size))


def crop_offset(image, output, padding):
    """The offset of `output` in the zero-padded `image`; None if it is not a window of it."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    side = image.shape[0]
    found = [
        (i, j)
        for i in range(2 * padding + 1)
        for j in range(2 * padding + 1)
        if np.array_equal(padded[i : i + side, j : j + side], output)
    ]
    return found[0] if len(found) == 1 else None


def test_random_crop_cuts_every_window_of_the_zero_padded_image():
    images = random_images(400, size=5)
    output = np.asarray(random_crop(KEY, images, 1))
    offsets = [crop_offset(a, b, 1) for a, b in zip(np.asarray(images), output, strict=True)]
    assert output.dtype == np.uint8
    assert set(offsets) == {(i, j) for i in range(3) for j in range(3)}
    # 400 draws over 9 windows: expectation 44.4, standard deviation 6.3; five deviations allowed.
    counts = [offsets.count(offset) for offset in set(offsets)]
    assert min(counts) > 13 and max(counts) < 76


def test_random_flip_mirrors_half_of_the_images():
    images = random_images(400)
    output = np.asarray(random_flip(KEY, images))
    is_kept = (output == images).all(axis=(1, 2, 3))
    is_mirrored = (output == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (is_kept ^ is_mirrored).all()
    assert 150 < is_mirrored.sum() < 250  # binomial, mean 200, standard deviation 10


@pytest.mark.parametrize("size", [3, 4])
def test_random_cutout_paints_one_square_around_any_centre(size):
    images = jnp.maximum(random_images(800, size=7), 1)
    fill = jnp.zeros(3, jnp.uint8)
    output = np.asarray(random_cutout(KEY, images, size, fill))
    centers = set()
    for image, result in zip(np.asarray(images), output, strict=True):
        is_cut = (result == 0).all(axis=-1)
        assert (result[~is_cut] == image[~is_cut]).all()
        expected = {}
        for i in range(7):
            for j in range(7):
                square = np.zeros((7, 7), bool)
                low = [max(c - size // 2, 0) for c in (i, j)]
                high = [c - size // 2 + size for c in (i, j)]
                square[low[0] : high[0], low[1] : high[1]] = True
                expected[i, j] = square
        centers |= {c for c, square in expected.items() if (square == is_cut).all()}
    assert len(centers) == 49


def test_cutout_is_in_the_mean_colour():
    images = jnp.zeros((50, 4, 4, 3), jnp.uint8)
    spec = AugmentSpec(cutout_size=2)
    output = np.asarray(augment_images(KEY, images, spec, (0.25, 0.5, 1.0)))
    colours = np.unique(output.reshape(-1, 3), axis=0)
    np.testing.assert_array_equal(colours, [[0, 0, 0], [64, 128, 255]])


def test_resized_crop_of_the_whole_area_changes_only_the_aspect():
    """A ramp stays a ramp: linear resizing reproduces linear images away from the borders."""
    ramp = np.broadcast_to(np.arange(32)[:, None, None] * 8, (1, 32, 32, 1)).astype(np.uint8)
    images = jnp.repeat(ramp, 64, axis=0)
    output = np.asarray(random_resized_crop(KEY, images, 0.25)).astype(int)
    rows = output[:, 2:-2]
    assert (rows == rows[:, :, :1]).all()  # all columns of the image are equal
    steps = np.diff(rows[:, :, 0, 0], axis=1)
    assert (steps.max(axis=1) - steps.min(axis=1) <= 1).all()  # one grey level of rounding
    slopes = (rows[:, -1, 0, 0] - rows[:, 0, 0, 0]) / (rows.shape[1] - 1) / 8
    # Fraction of the height: sqrt(area) * sqrt(aspect), area 0.25 to 1, aspect 3/4 to 4/3.
    assert slopes.min() > 0.5 * 0.86 and slopes.max() <= 1.01
    assert np.ptp(slopes) > 0.3
    assert output.min() >= 0 and output.max() <= 255


def test_resized_crop_shows_a_rectangle_of_the_image():
    """On an image whose pixels are their own coordinates, the output spans a box inside it."""
    rows, columns = np.meshgrid(np.arange(64) * 4, np.arange(64) * 4, indexing="ij")
    image = np.stack([rows, columns, rows], axis=-1).astype(np.uint8)
    output = np.asarray(random_resized_crop(KEY, jnp.repeat(image[None], 64, axis=0), 0.1))
    spans = np.ptp(output.reshape(64, -1, 3).astype(float), axis=1)[:, :2] / 252
    areas = spans.prod(axis=1)
    assert areas.min() < 0.3 and areas.max() > 0.7
    assert areas.min() > 0.05  # 0.1 minus one row and one column of border pixels


def test_augmentation_is_a_pure_function_of_the_key_also_inside_jit():
    images = random_images(8)
    spec = AugmentSpec(crop_padding=2, horizontal_flip=True, cutout_size=3)
    preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3, spec=spec)
    eager = preprocessing.augment(KEY, images)
    np.testing.assert_array_equal(eager, jax.jit(preprocessing.augment)(KEY, images))
    assert (np.asarray(eager) != preprocessing.augment(jax.random.key(1), images)).any()


def test_switching_one_transformation_on_leaves_the_draws_of_the_others():
    images = random_images(8)
    crop = AugmentSpec(crop_padding=2)
    both = AugmentSpec(crop_padding=2, horizontal_flip=True)
    mean = (0.5,) * 3
    cropped = np.asarray(augment_images(KEY, images, crop, mean))
    output = np.asarray(augment_images(KEY, images, both, mean))
    is_same = (output == cropped).all(axis=(1, 2, 3))
    is_mirrored = (output == cropped[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (is_same | is_mirrored).all() and is_mirrored.any()


def test_no_augmentation_is_the_identity():
    images = random_images(4)
    np.testing.assert_array_equal(augment_images(KEY, images, AugmentSpec(), (0.5,) * 3), images)


def test_normalize_against_float64():
    images = random_images(4)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    expected = (np.asarray(images, np.float64) / 255 - mean) / std
    output = normalize_images(images, mean, std)
    assert output.dtype == jnp.float32
    np.testing.assert_allclose(output, expected, rtol=0, atol=5e-7)  # four roundings at ~2.5
    low = normalize_images(images, mean, std, jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low, output.astype(jnp.bfloat16))


def test_each_transformation_has_its_own_key():
    images = random_images(8)
    spec = AugmentSpec(crop_padding=2, horizontal_flip=True, cutout_size=2)
    crop_key, flip_key, cutout_key = jax.random.split(KEY, 3)
    expected = random_flip(flip_key, random_crop(crop_key, images, 2))
    expected = random_cutout(cutout_key, expected, 2, jnp.full(3, 128, jnp.uint8))
    np.testing.assert_array_equal(augment_images(KEY, images, spec, (0.5,) * 3), expected)


def test_alternating_flips_show_both_sides_in_two_epochs():
    images = jax.random.randint(jax.random.key(0), (200, 4, 4, 3), 0, 256).astype(jnp.uint8)
    mirrored = images[:, :, ::-1]
    epochs = [alternating_flip(images, epoch) for epoch in (4, 5, 6)]
    is_flipped = [np.asarray(jnp.all(shown == mirrored, (1, 2, 3))) for shown in epochs]
    assert np.all(is_flipped[0] != is_flipped[1]) and np.all(is_flipped[0] == is_flipped[2])
    assert 60 < is_flipped[0].sum() < 140


def test_reflected_borders_repeat_the_image():
    images = jnp.arange(16, dtype=jnp.uint8).reshape(1, 4, 4, 1)
    padded = np.pad(np.asarray(images)[0, :, :, 0], 1, mode="reflect")
    windows = [padded[i : i + 4, j : j + 4].tolist() for i in range(3) for j in range(3)]
    for seed in range(10):
        cut = random_crop(jax.random.key(seed), images, 1, "reflection")
        assert np.asarray(cut)[0, :, :, 0].tolist() in windows


def test_evaluation_views_are_shifts_and_mirrors():
    images = np.asarray(random_images(3), np.float32)
    views, weights = evaluation_views(jnp.asarray(images))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    shifted = [padded[:, 1:-1, 1:-1], padded[:, :-2, :-2], padded[:, 2:, 2:]]
    expected = [side for view in shifted for side in (view, view[:, :, ::-1])]
    np.testing.assert_array_equal(views, expected)
    np.testing.assert_array_equal(weights, [0.25, 0.25, 0.125, 0.125, 0.125, 0.125])
