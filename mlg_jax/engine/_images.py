"""From image files and uint8 pixels to what a network takes, as a packed file says it."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlg_jax._checks import check_choice, check_integer, check_real
from mlg_jax._dataclass_json import from_plain, to_plain
from mlg_jax._types import Array
from mlg_jax.data import decode_image, normalize_images

RESIZES = ("center_bicubic",)
MAX_SIDE = 4096  # so that no file can ask for images that fill the memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagePreprocessing:
    """How an image becomes the input of a network.

    Args:
        image_size: height and width in pixels, at most `MAX_SIDE`.
        mean: of the pixels in [0, 1], one number a channel, of which there are 1 or 3.
        std: standard deviation likewise, > 0.
        resize: how files of another size are fitted: `center_bicubic` cuts the largest central
            square out and resizes it, with anti-aliasing.

    Raises:
        TypeError, ValueError: an argument of another type or out of range.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = "center_bicubic"

    def __post_init__(self) -> None:
        _check_length("image_size", self.image_size, (2,))
        _check_length("mean", self.mean, (1, 3))
        _check_length("std", self.std, (len(self.mean),))
        for size in self.image_size:
            check_integer("image_size", size, 1, MAX_SIDE)
        for mean, std in zip(self.mean, self.std, strict=True):
            check_real("mean", mean, 0.0, 1.0)
            check_real("std", std, 0.0, exclusive_minimum=True)
        check_choice("resize", self.resize, RESIZES)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return (*self.image_size, len(self.mean))

    def normalize(self, images: Array) -> Array:
        """`(x / 255 - mean) / std` of uint8 pixels, float32; pure, for use inside jit."""
        return normalize_images(images, self.mean, self.std)

    def read(self, paths: Sequence[str | os.PathLike[str]]) -> np.ndarray:
        """The pixels of PNG, JPEG or WebP files, uint8 [N, H, W, C]; see `decode_image`.

        Raises:
            ValueError: a file that is no image, or one that cannot be fitted.
            FileNotFoundError: there is no such file.
        """
        return np.stack([self._read(os.fspath(path)) for path in paths])

    def _read(self, path: str) -> np.ndarray:
        height, width, channels = self.image_shape
        size = height if height == width else None
        image = decode_image(path, channels=channels, size=size, where=path)
        if image.shape != self.image_shape:
            raise ValueError(
                f"The image {path} must have {width} x {height} pixels, as only squares are "
                f"resized; got {image.shape[1]} x {image.shape[0]}."
            )
        return image

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return to_plain(self)

    @classmethod
    def from_json(cls, tree: Any) -> "ImagePreprocessing":
        """What `to_json` gave.

        Raises:
            TypeError, ValueError: another structure, type or range.
        """
        return from_plain(cls, tree, "preprocessing")


def _check_length(name: str, value: Any, lengths: tuple[int, ...]) -> None:
    """Raises unless `value` is a tuple of one of these lengths."""
    if not isinstance(value, tuple) or len(value) not in lengths:
        allowed = " or ".join(map(str, lengths))
        raise ValueError(f"`{name}` must be a tuple of {allowed} numbers; got {value!r}.")
