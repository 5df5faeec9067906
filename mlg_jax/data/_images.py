"""Files and encoded bytes to uint8 arrays of one size: the only place where images are decoded."""

import contextlib
import io
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from mlg_jax.data._examples import ArrayExamples, DataError

# The formats that are opened and the suffixes of their files. Nothing else reaches a decoder,
# whatever its name: some of Pillow's run other programs (EPS: Ghostscript).
IMAGE_FORMATS = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "WEBP": (".webp",)}
FORMAT_NAMES = "PNG, JPEG or WebP"

_MODES = {1: "L", 3: "RGB"}  # channels to the colour modes of Pillow
_ORIENTATION = 0x0112  # EXIF tag: which side of the stored image is shown on top
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)
_EXIF_ERRORS = (SyntaxError, ValueError, TypeError, struct.error)


def decode_image(source: bytes | str, *, channels: int, size: int | None, where: str) -> np.ndarray:
    """Decodes a PNG, JPEG or WebP (the first frame of an animation) to what a viewer shows.

    The EXIF orientation is applied. Transparent pixels are shown on white: the colour behind them
    is arbitrary, and encoders change it. 16-bit grey levels `v` become `round(v / 257)`; of 16-bit
    colours Pillow reads the upper byte.

    Args:
        source: the encoded bytes, or the path of a file.
        channels: 1 (grey) or 3 (RGB); other colour modes are converted.
        size: side of the square which the largest central square is resized to (bicubic, with
            anti-aliasing); None keeps the image as it is.
        where: names the image in error messages.

    Returns:
        uint8 [h, w, channels].

    Raises:
        DataError: the bytes are no image of these formats, or damaged, or it has more pixels than
            `2 * PIL.Image.MAX_IMAGE_PIXELS`, which is 178,956,970 unless it was changed.
        FileNotFoundError: there is no such file.
    """
    mode = _MODES[channels]
    with _opened(source, where) as image:
        if size is not None:
            # JPEG only: decodes at 1/2, 1/4 or 1/8, never below twice the wanted side, where
            # the bicubic filter hides the difference; it saves most of the time.
            image.draft(mode, (2 * size, 2 * size))
        image.load()  # EXIF may stand behind the pixels
        pixels = _fit(_upright(_opaque(image).convert(mode), _orientation(image)), size)
    return pixels if pixels.ndim == 3 else pixels[..., None]


@contextlib.contextmanager
def _opened(source: bytes | str, where: str) -> Iterator[Any]:
    """A Pillow image whose header has been read; what goes wrong with it names `where`."""
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
    """The EXIF orientation, 1 to 8, as far as it is read; 1 (upright) where EXIF is damaged."""
    import PIL.Image

    try:
        # The method of PngImageFile decodes all pixels to look for EXIF behind them.
        found: Any = PIL.Image.Image.getexif(image).get(_ORIENTATION)
    except _EXIF_ERRORS:
        return 1
    return int(found) if found in range(1, 9) else 1


def _upright(image: Any, orientation: int) -> Any:
    """A Pillow image turned to how it is shown.

    Not `ImageOps.exif_transpose`, which also writes EXIF again and fails where that is damaged.
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
    """A loaded Pillow image with 8 bits a channel, its transparent parts shown on white."""
    import PIL.Image

    if image.mode.startswith("I;16"):  # Pillow would clip everything above 255
        levels = np.asarray(image).astype(np.uint32)
        grey = np.where(levels == image.info.get("transparency"), 255, (levels + 128) // 257)
        return PIL.Image.fromarray(grey.astype(np.uint8))
    if not image.has_transparency_data:
        return image
    white = PIL.Image.new("RGBA", image.size, "white")
    return PIL.Image.alpha_composite(white, image.convert("RGBA"))


def header_size(path: str) -> tuple[int, int] | None:
    """Height and width of an image file as it is shown, from its first and last bytes.

    Returns:
        None where these do not fit: a file that does not end as its format does may be cut short,
        which only decoding can tell.

    Raises:
        DataError, FileNotFoundError: see `decode_image`.
    """
    with _opened(path, path) as image, open(path, "rb") as file:
        width, height = image.size
        size = (width, height) if _orientation(image) >= 5 else (height, width)
        return size if _is_complete(file, image.format) else None


def _is_complete(file: BinaryIO, image_format: str | None) -> bool:
    """Whether the file ends as its format does; False for good files with something appended."""
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


def _fit(image, size: int | None) -> np.ndarray:
    """The central square of a Pillow image at `size` pixels a side, or all of it."""
    import PIL.Image
    import PIL.ImageOps

    if size is not None and image.size != (size, size):
        image = PIL.ImageOps.fit(image, (size, size), PIL.Image.Resampling.BICUBIC)
    return np.asarray(image)


def resize_images(images: np.ndarray, size: int | None) -> np.ndarray:
    """uint8 [n, h, w, c] to [n, size, size, c], as `decode_image` does; None changes nothing."""
    import PIL.Image

    if size is None or images.shape[1:3] == (size, size):
        return images
    channels = images.shape[-1]
    resized = np.empty((len(images), size, size, channels), np.uint8)
    for target, pixels in zip(resized, images, strict=True):
        image = PIL.Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        target[...] = _fit(image, size).reshape(target.shape)
    return resized


def array_examples(
    images: np.ndarray, labels: np.ndarray, *, num_classes: int, size: int | None, where: str
) -> ArrayExamples:
    """`ArrayExamples` of images that are checked first and then resized."""
    examples = ArrayExamples(images, labels, num_classes=num_classes, where=where)
    if size is None:
        return examples
    resized = resize_images(images, size)
    return ArrayExamples(resized, labels, num_classes=num_classes, where=where)
