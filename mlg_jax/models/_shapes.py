"""Image sizes and channel counts, as all architectures define them."""

from mlg_jax._checks import check_choice, check_floating
from mlg_jax._types import Array
from mlg_jax.models.resnet import IMAGE_SIZES, STEMS


def image_shape(stem: str) -> tuple[int, int, int, int]:
    """The shape of one image at the resolution that the stem is designed for."""
    size = IMAGE_SIZES[stem]
    return (1, size, size, 3)


def check_images(x: Array, stem: str, min_size: int) -> None:
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
