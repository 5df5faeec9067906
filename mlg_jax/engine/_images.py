"""Preprocessing stored in a packed file: from image files and uint8 pixels to network inputs."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlg_jax._checks import check_choice, check_integer, check_real
from mlg_jax._dataclass_json import from_plain, to_plain
from mlg_jax._image_files import CENTER_BICUBIC, CROP_875_BILINEAR, RESIZES, read_images
from mlg_jax._types import Array
from mlg_jax.data import Dataset, normalize_images

MAX_SIDE = 4096  # so that images of the size given by a file cannot fill the memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagePreprocessing:
    """How an image becomes the input of a network.

    Args:
        image_size: height and width in pixels, at most `MAX_SIDE`.
        mean: mean of the pixels, scaled to [0, 1], per channel; 1 or 3 numbers.
        std: standard deviation of the pixels, scaled to [0, 1], per channel; > 0.
        resize: how image files become square. `center_bicubic` crops the largest central square
            of a file of another size and resizes it with anti-aliasing. `crop_875_bilinear` scales
            every file until its shorter side is `side / .875`, 256 pixels for 224, and crops the
            central square, as torchvision's networks are evaluated; it requires a square
            `image_size`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = CENTER_BICUBIC

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
        if self.resize == CROP_875_BILINEAR and len(set(self.image_size)) > 1:
            raise ValueError(
                f"`image_size` must be square for `resize` {self.resize!r}; got {self.image_size}."
            )

    @classmethod
    def of(cls, dataset: Dataset) -> "ImagePreprocessing":
        """That of a data set's images."""
        mean, std = dataset.preprocessing.mean, dataset.preprocessing.std
        return cls(image_size=dataset.image_shape[:2], mean=mean, std=std)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`."""
        return (*self.image_size, len(self.mean))

    def normalize(self, images: Array) -> Array:
        """`(x / 255 - mean) / std` of uint8 pixels, float32; pure, for use inside jit."""
        return normalize_images(images, self.mean, self.std)

    def read(self, paths: Sequence[str | os.PathLike[str]]) -> np.ndarray:
        """The pixels of PNG, JPEG or WebP files, uint8 `[N, H, W, C]`; see `decode_image`.

        Raises:
            ValueError: a file is not an image, or has another size that cannot be resized.
            FileNotFoundError: a file does not exist.
        """
        return read_images(paths, self.image_shape, self.resize)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return to_plain(self)

    @classmethod
    def from_json(cls, tree: Any) -> "ImagePreprocessing":
        """The inverse of `to_json`.

        Raises:
            TypeError, ValueError: `tree` has another structure, or a value is invalid.
        """
        return from_plain(cls, tree, "preprocessing")


def _check_length(name: str, value: Any, lengths: tuple[int, ...]) -> None:
    """Raises ValueError unless `value` is a tuple of one of these lengths."""
    if not isinstance(value, tuple) or len(value) not in lengths:
        allowed = " or ".join(map(str, lengths))
        raise ValueError(f"`{name}` must be a tuple of {allowed} numbers; got {value!r}.")
