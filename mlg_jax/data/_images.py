"""Encoded images to uint8 arrays of one size."""

import io

import numpy as np

from mlg_jax.data._examples import ArrayExamples

_MODES = {1: "L", 3: "RGB"}  # channels to the colour modes of Pillow


def decode_image(source: bytes | str, *, channels: int, size: int | None, where: str) -> np.ndarray:
    """Decodes a PNG or JPEG.

    Args:
        source: the encoded bytes, or the path of a file.
        channels: 1 (grey) or 3 (RGB); other colour modes are converted.
        size: side of the square which the largest central square is resized to (bicubic, with
            anti-aliasing); None keeps the image as it is.
        where: names the image in error messages.

    Returns:
        uint8 [h, w, channels].

    Raises:
        ValueError: the bytes are no image.
        FileNotFoundError: there is no such file.
    """
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if size is not None:
                # JPEG only: decodes at 1/2, 1/4 or 1/8, never below twice the wanted side, where
                # the bicubic filter hides the difference; it saves most of the time.
                image.draft(_MODES[channels], (2 * size, 2 * size))
            pixels = _fit(image.convert(_MODES[channels]), size)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"The image {where} must be a readable PNG or JPEG; {error}.") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


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
