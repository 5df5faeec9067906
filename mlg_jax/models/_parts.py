"""What several architectures share: image sizes, channel counts, pooling to a grid, dropout."""

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from mlg_jax._checks import check_choice, check_floating
from mlg_jax._types import Array, Float

STEMS = ("cifar", "imagenet")
IMAGE_SIZES = {"cifar": 32, "imagenet": 224}
DROPOUT_STREAM = "dropout"


def image_shape(stem: str) -> tuple[int, int, int, int]:
    """The shape of one image at the resolution that the stem is designed for."""
    size = IMAGE_SIZES[stem]
    return (1, size, size, 3)


def check_images(x: Array, stem: str, min_size: int = 1) -> None:
    """Raises unless `x` is a floating `[N, H, W, C]` with H and W of at least `min_size`."""
    check_choice("stem", stem, STEMS)
    check_floating("x", x)
    if x.ndim != 4:
        raise ValueError(f"`x` must have shape [N, H, W, C]; got {x.shape}.")
    if min(x.shape[1:3]) < min_size:
        raise ValueError(
            f"`x` must have images of at least {min_size} x {min_size} for stem {stem!r}; "
            f"got {x.shape[1]} x {x.shape[2]}."
        )


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded, at least 1."""
    return max(1, round(channels * width))


def adaptive_mean_pool(x: Float[Array, "n h w c"], size: int) -> Float[Array, "n s s c"]:
    """Means over a grid of `size` x `size` cells; the identity for images of that size.

    Cell i of an axis of n positions covers `floor(i n / size)` to `ceil((i + 1) n / size)`, as in
    PyTorch: cells overlap where `size` does not divide n.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        if n != size:
            edges = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
            cells = [lax.slice_in_dim(x, low, high, axis=axis) for low, high in edges]
            x = jnp.stack([jnp.mean(cell, axis) for cell in cells], axis)
    return x


def flatten_channels_first(x: Float[Array, "n h w c"]) -> Float[Array, "n chw"]:
    """`[N, H, W, C]` to `[N, C H W]`, PyTorch's order, so that its kernels need no reordering."""
    return jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)


def dropout(module: nn.Module, x: Array, rate: float, *, name: str, train: bool) -> Array:
    """Zeroes random entries and scales the others by `1 / (1 - rate)`, in training only.

    Args:
        module: the compact Linen module in whose scope this is called.
        x: floating, any shape.
        rate: the probability of zeroing an entry, in [0, 1].
        name: of the layer; its random numbers depend on it.
        train: False returns `x` unchanged.

    Raises:
        ValueError: training without the random stream `dropout`.

    Reference: https://jmlr.org/papers/v15/srivastava14a.html.
    """
    if not train or module.is_initializing():
        return x
    # Otherwise Linen falls back on the stream "params" or, without it, fails with a vaguer message.
    if not module.has_rng(DROPOUT_STREAM):
        raise ValueError(
            f"`rngs` must hold {DROPOUT_STREAM!r} to train with dropout (layer "
            f"{'/'.join((*module.path, name))}); pass rngs={{{DROPOUT_STREAM!r}: key}}."
        )
    return nn.Dropout(rate, deterministic=False, rng_collection=DROPOUT_STREAM, name=name)(x)
