"""Files decode to the pixels a viewer shows; resizing takes the central square."""

import io
import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest

from mlg_jax._image_files import decode_image, header_size, resize_images
from mlg_jax.data import DataError
from mlg_jax.data._images import array_examples
from tests.data._tiny import random_images


def encode(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def decode(source, channels=3, size=None):
    return decode_image(source, channels=channels, size=size, where="it")


def smooth_image(height, width):
    """An image that resampling barely changes: a vertical ramp and a horizontal one."""
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
    # Cubic resampling keeps a ramp, except at the border; JPEG adds a few grey levels.
    assert np.abs(output - expected)[1:-1, 1:-1].max() <= (6 if form == "JPEG" else 2)


@pytest.mark.parametrize(
    "height, width, scaled, corner",
    [
        (256, 512, (256, 512), (16, 144)),  # the shorter side has the size that is wanted
        (400, 301, (340, 256), (58, 16)),  # 256 * 400 / 301 is 340.2
        (128, 128, (256, 256), (16, 16)),
    ],
)
def test_torchvisions_central_crop(height, width, scaled, corner):
    """Resize(256), bilinear, and CenterCrop(224)."""
    pixels = random_images(1, size=max(height, width))[0, :height, :width]
    rows, columns = scaled
    whole = PIL.Image.fromarray(pixels).resize((columns, rows), PIL.Image.Resampling.BILINEAR)
    top, left = corner
    expected = np.asarray(whole)[top : top + 224, left : left + 224]
    options = {"channels": 3, "where": "it", "resize": "crop_875_bilinear"}
    np.testing.assert_array_equal(decode_image(encode(pixels), size=224, **options), expected)


def test_jpeg_decoding_at_a_fraction_keeps_the_details():
    """Halves an image of 4-pixel blocks, which decoding at a lower resolution would blur."""
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


def oriented(pixels, form, orientation, **options):
    """The pixels a camera held in this orientation would store; a viewer shows `pixels`."""
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return encode(np.ascontiguousarray(stored), form, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100, "subsampling": 0})],
)
def test_images_are_turned_as_viewers_show_them(form, options, orientation, tmp_path):
    pixels = np.kron(random_images(1, size=4)[0][:3], np.ones((8, 8, 1), np.uint8))
    encoded = oriented(pixels, form, orientation, **options)
    tolerance = 3 if form == "JPEG" else 0  # its colours and frequencies are rounded
    assert np.abs(decode(encoded).astype(int) - pixels).max() <= tolerance
    np.testing.assert_allclose(decode(encoded, size=8), decode(encode(pixels), size=8), atol=3)
    path = tmp_path / "image"
    path.write_bytes(encoded)
    assert header_size(str(path)) == (24, 32)


def test_damaged_exif_is_not_looked_at():
    pixels = random_images(1)[0]
    for content in (b"Exif\0\0nonsense", oriented(pixels, "PNG", 6)[60:90]):
        np.testing.assert_array_equal(decode(encode(pixels, exif=content)), pixels)
    exif = PIL.Image.Exif()
    exif[0x0112] = 99
    np.testing.assert_array_equal(decode(encode(pixels, exif=exif)), pixels)


def test_16_bit_levels_are_scaled():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(levels * (255 / 65535)).astype(np.uint8)[..., None]
    np.testing.assert_array_equal(decode(encode(levels), 1), expected)
    np.testing.assert_array_equal(decode(encode(levels), 3), np.repeat(expected, 3, axis=-1))
    assert decode(encode(levels), 1, size=16).shape == (16, 16, 1)


def _png(colour_type, samples, transparent=None):
    """A PNG with 16 bits per sample, [h, w, channels]; Pillow can only write grey ones."""

    def chunk(name, data):
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    key = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    chunks = chunk(b"IHDR", header) + key + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def test_16_bit_colours_are_within_a_level():
    levels = np.random.default_rng(0).integers(0, 65536, (5, 7, 3))
    output = decode(_png(2, levels)).astype(int)
    assert np.abs(output - levels * (255 / 65535)).max() < 1
    grey = np.array([[[0, 0], [0, 65535], [65535, 65535]]])
    np.testing.assert_array_equal(decode(_png(4, grey), 1)[0, :, 0], [255, 0, 255])


def test_a_transparent_16_bit_level_is_white_and_its_neighbours_are_not():
    levels = np.array([[[1000], [1001], [999]]])
    np.testing.assert_array_equal(decode(_png(0, levels, 1000), 1)[0, :, 0], [255, 4, 4])


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparent_pixels_are_shown_on_white(form):
    pixels = random_images(1, channels=4)[0]
    pixels[0, :, 3], pixels[1, :, 3] = 0, 255
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    alpha = pixels[..., 3:] / 255
    expected = alpha * pixels[..., :3] + (1 - alpha) * 255
    output = decode(encode(pixels, form, **options))
    assert np.abs(output - expected).max() <= 1  # Pillow blends in integers
    assert (output[0] == 255).all()
    np.testing.assert_array_equal(output[1], pixels[1, :, :3])


@pytest.mark.parametrize("mode", ["palette", "alphas", "L", "RGB", "LA", "1"])
def test_every_kind_of_transparency_is_shown_on_white(mode):
    """The left half is transparent, but stores a colour unlike the background."""
    buffer = io.BytesIO()
    if mode == "LA":
        image = PIL.Image.merge("LA", [PIL.Image.new("L", (4, 2)), PIL.Image.new("L", (4, 2))])
        image.paste((0, 255), (2, 0, 4, 2))
        image.save(buffer, "PNG")
    else:
        image = PIL.Image.new("RGB", (4, 2), "white" if mode == "1" else (10, 10, 10))
        image.paste((0, 0, 0), (2, 0, 4, 2))
        image = image.quantize(2) if mode in ("palette", "alphas") else image.convert(mode)
        key = image.getpixel((0, 0))
        alphas = bytes(0 if index == key else 255 for index in range(2))
        image.save(buffer, "PNG", transparency=alphas if mode == "alphas" else key)
    for channels in (1, 3):
        output = decode(buffer.getvalue(), channels)
        assert (output[:, :2] == 255).all() and (output[:, 2:] == 0).all()


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_of_an_animation_it_is_the_first_frame(form):
    first, second = (PIL.Image.fromarray(pixels) for pixels in random_images(2))
    buffer = io.BytesIO()
    first.save(buffer, form, save_all=True, append_images=[second], lossless=True)
    np.testing.assert_array_equal(decode(buffer.getvalue()), np.asarray(first))


def test_printers_colours_are_converted():
    buffer = io.BytesIO()
    ink = PIL.Image.new("CMYK", (8, 8), (255, 0, 0, 0))  # cyan
    ink.save(buffer, "JPEG", quality=100)
    for size in (None, 2):
        output = decode(buffer.getvalue(), size=size).astype(int)
        assert np.abs(output - [0, 255, 255]).max() <= 2


@pytest.mark.bad_input
@pytest.mark.parametrize("form", ["BMP", "GIF", "TIFF", "EPS", "PPM", "TGA", "ICO"])
def test_other_formats_are_refused_whatever_their_name(form, tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(encode(random_images(1, size=16)[0], form))
    message = r"must be a readable PNG, JPEG or WebP; it is none of them\.$"
    with pytest.raises(DataError, match=message):
        decode(str(path))


@pytest.mark.bad_input
@pytest.mark.parametrize("content", [b"", b"no image", encode(random_images(1)[0])[:60]])
def test_broken_images_are_named(content):
    with pytest.raises(DataError, match="The image it must be a readable PNG, JPEG or WebP; "):
        decode(content)


@pytest.mark.bad_input
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_damaged_images_are_data_errors_or_images(form):
    """Whatever a decoder raises for flipped or missing bytes becomes an error with the name."""
    encoded = oriented(random_images(1, size=24)[0], form, 6)
    rng = np.random.default_rng(0)
    num_errors = 0
    for trial in range(150):
        damaged = bytearray(encoded[: rng.integers(len(encoded))] if trial % 3 == 0 else encoded)
        for position in rng.integers(0, max(len(damaged), 1), 3 if damaged else 0):
            damaged[position] = rng.integers(256)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of damaged EXIF
                assert decode(bytes(damaged), size=8).shape == (8, 8, 3)
        except DataError as error:
            num_errors += 1
            assert "The image it must " in str(error) and "\n" not in str(error)
    assert num_errors >= 50


@pytest.mark.bad_input
def test_a_header_of_ten_thousand_million_pixels_is_refused():
    encoded = bytearray(encode(random_images(1)[0]))
    encoded[16:24] = struct.pack(">II", 100_000, 100_000)
    encoded[29:33] = struct.pack(">I", zlib.crc32(encoded[12:29]))
    with pytest.raises(
        DataError, match=r"The image it must have at most 178,956,970 pixels .*more\."
    ):
        decode(bytes(encoded))


def test_the_limit_is_twice_that_of_pillow(monkeypatch):
    encoded = encode(random_images(1)[0])  # 36 pixels
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 18)
    with pytest.warns(PIL.Image.DecompressionBombWarning):
        assert decode(encoded).shape == (6, 6, 3)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 17)
    with pytest.raises(DataError, match="at most 34 pixels"):
        decode(encoded)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert decode(encoded).shape == (6, 6, 3)


@pytest.mark.bad_input
def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        decode(str(tmp_path / "none.png"))
