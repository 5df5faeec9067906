"""Decodes images from files or bytes to uint8 arrays; no other module decodes images.

It needs neither JAX nor the rest of the library, so that other runtimes can use it at once.
"""

import contextlib
import io
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

# The supported formats and their file suffixes. Files in any other format are refused, whatever
# their suffix: some of Pillow's decoders run external programs (Ghostscript for EPS).
IMAGE_FORMATS = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "WEBP": (".webp",)}
FORMAT_NAMES = "PNG, JPEG or WebP"

# How an image becomes a square, see `ImagePreprocessing`; the first is what data sets do.
CENTER_BICUBIC, CROP_875_BILINEAR = RESIZES = ("center_bicubic", "crop_875_bilinear")

_MODES = {1: "L", 3: "RGB"}  # from a number of channels to Pillow's colour mode
_ORIENTATION = 0x0112  # EXIF tag of the orientation
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)
_EXIF_ERRORS = (SyntaxError, ValueError, TypeError, struct.error)


class DataError(ValueError):
    """Images or labels are invalid; raised when a data set is opened or read.

    The message names the file or the argument and is always a single line: line breaks in messages
    of other libraries and in file names become spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


def decode_image(
    source: bytes | str,
    *,
    channels: int,
    size: int | None,
    where: str,
    resize: str = CENTER_BICUBIC,
) -> np.ndarray:
    """Decodes a PNG, JPEG or WebP image to the pixels that an image viewer shows.

    The EXIF orientation is applied, and an animation gives its first frame. Transparent pixels are
    blended with white, since the colour stored for them is arbitrary and encoders change it. 16-bit
    grey levels `v` become `round(v / 257)`; of 16-bit colours Pillow keeps the upper byte.

    Args:
        source: the encoded bytes, or the path of a file.
        channels: 1 (grey) or 3 (RGB); other colour modes are converted.
        size: side in pixels of the square that is made of the image; None keeps its size.
        where: name of the image in error messages.
        resize: how the square is made, one of `RESIZES`.

    Returns:
        uint8 [h, w, channels].

    Raises:
        DataError: the image is damaged, in another format, or has more pixels than
            `2 * PIL.Image.MAX_IMAGE_PIXELS`, by default 178,956,970.
        FileNotFoundError: the file does not exist.
    """
    mode = _MODES[channels]
    with _opened(source, where) as image:
        if size is not None and resize == CENTER_BICUBIC:
            # For JPEG only: decodes at 1/2, 1/4 or 1/8 of the size, but to at least twice the side
            # asked for, so that the bicubic filter hides the difference. Saves most of the time.
            image.draft(mode, (2 * size, 2 * size))
        image.load()  # reads EXIF data stored after the pixels, too
        pixels = _fit(_upright(_opaque(image).convert(mode), _orientation(image)), size, resize)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def read_images(
    paths: Sequence[str | os.PathLike[str]],
    image_shape: tuple[int, int, int],
    resize: str = CENTER_BICUBIC,
) -> np.ndarray:
    """The pixels of image files for a network whose images have `(height, width, channels)`.

    Args:
        paths: the files.
        image_shape: of the network's images.
        resize: how images become square, one of `RESIZES`.

    Returns:
        uint8 `[N, height, width, channels]`.

    Raises:
        ValueError: a file is not an image, or has another size that cannot be resized.
        FileNotFoundError: a file does not exist.
    """
    return np.stack([_read(os.fspath(path), image_shape, resize) for path in paths])


def _read(path: str, image_shape: tuple[int, int, int], resize: str) -> np.ndarray:
    height, width, channels = image_shape
    size = height if height == width else None
    image = decode_image(path, channels=channels, size=size, where=path, resize=resize)
    if image.shape != image_shape:
        raise ValueError(
            f"The image {path} must have {width} x {height} pixels, as images are resized to "
            f"square sizes only; got {image.shape[1]} x {image.shape[0]}."
        )
    return image


@contextlib.contextmanager
def _opened(source: bytes | str, where: str) -> Iterator[Any]:
    """A Pillow image whose header has been read; turns decoding errors into `DataError`."""
    import PIL.Image

    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with PIL.Image.open(file, formats=tuple(IMAGE_FORMATS)) as image:
            yield image
    except FileNotFoundError:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        limit = 2 * (PIL.Image.MAX_IMAGE_PIXELS or 0)
        raise DataError(
            f"The image {where} must have at most {limit:,} pixels "
            "(2 * PIL.Image.MAX_IMAGE_PIXELS); it has more."
        ) from error
    except PIL.UnidentifiedImageError as error:
        raise DataError(
            f"The image {where} must be a readable {FORMAT_NAMES}; it is none of them."
        ) from error
    except _DECODER_ERRORS as error:
        raise DataError(f"The image {where} must be a readable {FORMAT_NAMES}; {error}.") from error


def _orientation(image: Any) -> int:
    """The EXIF orientation, 1 to 8, from the part read so far; 1 (upright) if EXIF is damaged."""
    import PIL.Image

    try:
        # PngImageFile.getexif would decode all pixels to look for EXIF data after them.
        found: Any = PIL.Image.Image.getexif(image).get(_ORIENTATION)
    except _EXIF_ERRORS:
        return 1
    return int(found) if found in range(1, 9) else 1


def _upright(image: Any, orientation: int) -> Any:
    """Applies an EXIF orientation to a Pillow image.

    `ImageOps.exif_transpose` would also rewrite the EXIF data, and fail if they are damaged.
    """
    from PIL.Image import Transpose

    steps = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(steps[orientation]) if orientation in steps else image


def _opaque(image: Any) -> Any:
    """Converts a loaded Pillow image to 8 bits per channel and blends it with white."""
    import PIL.Image

    if image.mode.startswith("I;16"):  # Pillow would clip levels above 255
        levels = np.asarray(image).astype(np.uint32)
        grey = np.where(levels == image.info.get("transparency"), 255, (levels + 128) // 257)
        return PIL.Image.fromarray(grey.astype(np.uint8))
    if not image.has_transparency_data:
        return image
    white = PIL.Image.new("RGBA", image.size, "white")
    return PIL.Image.alpha_composite(white, image.convert("RGBA"))


def header_size(path: str) -> tuple[int, int] | None:
    """Height and width of an image file after orientation, without decoding its pixels.

    Returns:
        `(height, width)`, or None if the file does not end as its format requires: it may be
        truncated, which only decoding can tell.

    Raises:
        DataError, FileNotFoundError: see `decode_image`.
    """
    with _opened(path, path) as image, open(path, "rb") as file:
        width, height = image.size
        size = (width, height) if _orientation(image) >= 5 else (height, width)
        return size if _is_complete(file, image.format) else None


def _is_complete(file: BinaryIO, image_format: str | None) -> bool:
    """Whether the file ends as its format requires; False for valid files with trailing data."""
    file.seek(0)
    head = file.read(8)
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(-min(num_bytes, 8), os.SEEK_END)
    tail = file.read()
    if image_format == "PNG":
        return tail == b"IEND\xaeB`\x82"
    if image_format == "WEBP":
        return int.from_bytes(head[4:], "little") + 8 <= num_bytes
    return tail.endswith(b"\xff\xd9")


def _fit(image, size: int | None, resize: str = CENTER_BICUBIC) -> np.ndarray:
    """A Pillow image as a square of side `size`; None keeps the whole image."""
    import PIL.Image
    import PIL.ImageOps

    if size is not None and resize == CROP_875_BILINEAR:
        image = _cropped(image, size)
    elif size is not None and image.size != (size, size):
        image = PIL.ImageOps.fit(image, (size, size), PIL.Image.Resampling.BICUBIC)
    return np.asarray(image)


def _cropped(image, size: int):
    """The central square of side `size` once the shorter side of the image is `size / .875`."""
    from PIL.Image import Resampling

    scaled = round(size / 0.875)
    sides = [scaled * side // min(image.size) for side in image.size]
    image = image.resize(tuple(sides), Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in sides)
    return image.crop((left, top, left + size, top + size))


def resize_images(images: np.ndarray, size: int | None) -> np.ndarray:
    """Resizes uint8 [n, h, w, c] to [n, size, size, c] as `decode_image` does; None is a no-op."""
    import PIL.Image

    if size is None or images.shape[1:3] == (size, size):
        return images
    channels = images.shape[-1]
    resized = np.empty((len(images), size, size, channels), np.uint8)
    for target, pixels in zip(resized, images, strict=True):
        image = PIL.Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        target[...] = _fit(image, size).reshape(target.shape)
    return resized
