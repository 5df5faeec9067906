"""Random augmentation and normalisation of image batches: pure functions for use inside jit."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, UInt8

from mlg_jax._types import Array, Float, Key
from mlg_jax.data._spec import ALTERNATING, AugmentSpec

_ASPECT_RATIOS = (3 / 4, 4 / 3)  # range for resized crops, as in the Inception recipe
_MAX_VALUE = 255.0  # the largest uint8 pixel value


def random_crop(
    key: Key, images: UInt8[Array, "n h w c"], padding: int, border_kind: str = "black"
) -> UInt8[Array, "n h w c"]:
    """Pads every side with `padding` pixels and crops back to the original size.

    Each image gets its own offset, uniform over the `(2 padding + 1)^2` windows. The published
    recipe pads with black before it normalises, so the border is not the mean colour; `reflection`
    mirrors the image at its edges.
    """
    num, height, width, channels = images.shape
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    offsets = jax.random.randint(key, (num, 2), 0, 2 * padding + 1)

    def cut(image: jax.Array, offset: jax.Array) -> jax.Array:
        start = (offset[0], offset[1], jnp.zeros_like(offset[0]))
        return jax.lax.dynamic_slice(image, start, (height, width, channels))

    mode = "reflect" if border_kind == "reflection" else "constant"
    return jax.vmap(cut)(jnp.pad(images, border, mode=mode), offsets)


def random_flip(key: Key, images: UInt8[Array, "n h w c"]) -> UInt8[Array, "n h w c"]:
    """Mirrors each image left to right with probability one half."""
    is_flipped = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(is_flipped, images[:, :, ::-1, :], images)


def alternating_flip(
    images: UInt8[Array, "n h w c"], epoch: jax.Array | int
) -> UInt8[Array, "n h w c"]:
    """Mirrors each image in every second epoch; its own pixels decide in which.

    Two epochs in a row show both sides of every image, which random flips do not.

    Reference: https://arxiv.org/abs/2404.00498, section 3.6.
    """
    total = jnp.sum(images.astype(jnp.uint32), (1, 2, 3))
    mixed = total * jnp.uint32(0x9E3779B1)  # neighbouring sums get unrelated upper bits
    is_flipped = ((mixed >> 31) + jnp.asarray(epoch, jnp.uint32)) % 2 == 1
    return jnp.where(is_flipped[:, None, None, None], images[:, :, ::-1, :], images)


def evaluation_views(
    images: Float[Array, "n h w c"],
) -> tuple[Float[Array, "v n h w c"], Float[Array, " v"]]:
    """Six views of each image, whose weighted mean of logits is steadier than one view's logits.

    The image itself and the image shifted by one pixel along either direction of the diagonal, with
    reflection at the edges, each also mirrored left to right. The unshifted pair has half the
    weight.

    Reference: https://arxiv.org/abs/2404.00498, section 3.1.
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    shifted = [padded[:, at : at + height, at : at + width] for at in (0, 2)]
    views = [view[:, :, ::side] for view in (images, *shifted) for side in (1, -1)]
    return jnp.stack(views), jnp.asarray([1 / 4] * 2 + [1 / 8] * 4, images.dtype)


def _in_window(length: int, center: jax.Array, size: int) -> Bool[Array, "n {length}"]:
    """Whether each of `length` positions lies in the window of width `size` around each centre."""
    position = jnp.arange(length)
    low = center[:, None] - size // 2
    return (position >= low) & (position < low + size)


def random_cutout(
    key: Key, images: UInt8[Array, "n h w c"], size: int, fill: UInt8[Array, " c"]
) -> UInt8[Array, "n h w c"]:
    """Fills a random square of side `size` with the colour `fill`.

    The centre is uniform over the image, so the square may extend past the border, as in the paper.
    """
    num, height, width, _ = images.shape
    row_key, column_key = jax.random.split(key)
    rows = _in_window(height, jax.random.randint(row_key, (num,), 0, height), size)
    columns = _in_window(width, jax.random.randint(column_key, (num,), 0, width), size)
    is_cut = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(is_cut, fill, images)


def random_resized_crop(
    key: Key, images: UInt8[Array, "n h w c"], min_area: float
) -> UInt8[Array, "n h w c"]:
    """Crops a random rectangle and resizes it bilinearly to the original `h x w`.

    The rectangle's area is uniform in [`min_area`, 1], as a fraction of the image; its aspect ratio
    is log-uniform in [3/4, 4/3]. A rectangle that does not fit is clipped to the image.
    """
    num, height, width, channels = images.shape
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, (num,), minval=min_area, maxval=1.0)
    low, high = _ASPECT_RATIOS
    log_ratio = jax.random.uniform(ratio_key, (num,), minval=jnp.log(low), maxval=jnp.log(high))
    aspect = jnp.exp(0.5 * jnp.stack([-log_ratio, log_ratio], axis=1))
    share = jnp.minimum(jnp.sqrt(area)[:, None] * aspect, 1.0)  # [n, 2]: of height and of width
    corner = jax.random.uniform(place_key, (num, 2)) * (1.0 - share)

    def resize(image: jax.Array, share: jax.Array, corner: jax.Array) -> jax.Array:
        side = jnp.array([height, width], jnp.float32)
        return jax.image.scale_and_translate(
            image.astype(jnp.float32),
            (height, width, channels),
            (0, 1),
            1.0 / share,
            -corner * side / share,
            method="linear",
        )

    resized = jax.vmap(resize)(images, share, corner)
    return jnp.clip(jnp.round(resized), 0.0, _MAX_VALUE).astype(jnp.uint8)


def augment_images(
    key: Key,
    images: UInt8[Array, "n h w c"],
    spec: AugmentSpec,
    mean: tuple[float, ...],
    epoch: jax.Array | int = 0,
) -> UInt8[Array, "n h w c"]:
    """Applies the transformations of `spec`: resized or padded crop, then flip, then cutout.

    Each transformation has its own key, so enabling one does not change the draws of the others.

    Args:
        key: the key of this batch; the same key gives the same images.
        images: raw pixels.
        spec: the transformations to apply.
        mean: fill colour of cutout in [0, 1], one number per channel.
        epoch: counted from 0, for alternating flips.

    Returns:
        Raw pixels of the same shape.
    """
    crop_key, flip_key, cutout_key = jax.random.split(key, 3)
    if spec.horizontal_flip == ALTERNATING:  # before crops, which change the pixels that decide
        images = alternating_flip(images, epoch)
    if spec.min_area is not None:
        images = random_resized_crop(crop_key, images, spec.min_area)
    if spec.crop_padding is not None:
        images = random_crop(crop_key, images, spec.crop_padding, spec.crop_border)
    if spec.horizontal_flip is True:
        images = random_flip(flip_key, images)
    if spec.cutout_size is not None:
        fill = jnp.round(jnp.array(mean) * _MAX_VALUE).astype(jnp.uint8)
        images = random_cutout(cutout_key, images, spec.cutout_size, fill)
    return images


def normalize_images(
    images: UInt8[Array, "*batch h w c"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "*batch h w c"]:
    """`(x / 255 - mean) / std`, computed in float32 and rounded once to `dtype`."""
    scaled = images.astype(jnp.float32) / _MAX_VALUE
    centered = scaled - jnp.array(mean, jnp.float32)
    return (centered / jnp.array(std, jnp.float32)).astype(dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Maps stored uint8 pixels to the input of a model: hashable, holds no array.

    Args:
        mean: mean of the pixels scaled to [0, 1], one number per channel.
        std: their standard deviation, one number per channel.
        spec: random transformations for training.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    spec: AugmentSpec = AugmentSpec()

    def augment(
        self, key: Key, images: UInt8[Array, "n h w c"], epoch: jax.Array | int = 0
    ) -> UInt8[Array, "n h w c"]:
        """See `augment_images`."""
        return augment_images(key, images, self.spec, self.mean, epoch)

    def normalize(
        self, images: UInt8[Array, "*batch h w c"], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "*batch h w c"]:
        """See `normalize_images`."""
        return normalize_images(images, self.mean, self.std, dtype)
