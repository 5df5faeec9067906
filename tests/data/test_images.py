"""PNG is exact, JPEG close; other sizes are the central square, resized."""

import io

import numpy as np
import PIL.Image
import pytest

from mlg_jax.data._images import array_examples, decode_image, resize_images
from tests.data._tiny import random_images


def encode(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def decode(source, channels=3, size=None):
    return decode_image(source, channels=channels, size=size, where="it")


def smooth_image(height, width):
    """A picture that survives resampling: a ramp down and a ramp across."""
    rows, columns = np.meshgrid(
        np.linspace(0, 255, height), np.linspace(0, 255, width), indexing="ij"
    )
    return np.stack([rows, columns, rows], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_exact(channels, tmp_path):
    pixels = random_images(1, channels=channels)[0]
    encoded = encode(pixels[..., 0] if channels == 1 else pixels)
    np.testing.assert_array_equal(decode(encoded, channels), pixels)
    path = tmp_path / "image.png"
    path.write_bytes(encoded)
    np.testing.assert_array_equal(decode(str(path), channels), pixels)


def test_colour_modes_are_converted():
    grey = random_images(1, channels=1)[0, ..., 0]
    np.testing.assert_array_equal(decode(encode(grey)), np.repeat(grey[..., None], 3, axis=-1))
    opaque = np.dstack([random_images(1)[0], np.full((6, 6), 255, np.uint8)])
    np.testing.assert_array_equal(decode(encode(opaque)), opaque[..., :3])


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_the_central_square_is_resized(form):
    image = smooth_image(200, 320)
    options = {"quality": 95} if form == "JPEG" else {}
    output = decode(encode(image, form, **options), size=20).astype(int)
    expected = image[:, 60:260].reshape(20, 10, 20, 10, 3).mean(axis=(1, 3))
    assert output.shape == (20, 20, 3)
    # Cubic resampling of a ramp is a ramp but for the border; JPEG adds a few grey levels.
    assert np.abs(output - expected)[1:-1, 1:-1].max() <= (6 if form == "JPEG" else 2)


def test_jpeg_decoding_at_a_fraction_keeps_the_details():
    """Blocks of 4 pixels, halved: decoding below the full size would blur them away."""
    image = np.kron(random_images(1, size=16)[0], np.ones((4, 4, 1), np.uint8))
    options = {"quality": 100, "subsampling": 0}
    output = decode(encode(image, "JPEG", **options), size=32).astype(int)
    assert np.abs(output - decode(encode(image), size=32)).max() <= 6


def test_resize_images_as_decode_does():
    images = np.stack([smooth_image(12, 12), random_images(1, size=12)[0]])
    output = resize_images(images, 8)
    for image, result in zip(images, output, strict=True):
        np.testing.assert_array_equal(result, decode(encode(image), size=8))
    assert resize_images(images, None) is images
    assert resize_images(images, 12) is images
    grey = random_images(2, size=12, channels=1)
    assert resize_images(grey, 8).shape == (2, 8, 8, 1)


def test_array_examples_are_resized_after_the_check():
    examples = array_examples(random_images(3), np.zeros(3, int), num_classes=1, size=4, where="it")
    assert examples.image_shape == (4, 4, 3)


@pytest.mark.bad_input
@pytest.mark.parametrize("content", [b"", b"no image", encode(random_images(1)[0])[:60]])
def test_broken_images_are_named(content):
    with pytest.raises(ValueError, match="The image it must be a readable PNG or JPEG; "):
        decode(content)


@pytest.mark.bad_input
def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        decode(str(tmp_path / "none.png"))
