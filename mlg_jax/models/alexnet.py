"""AlexNet for CIFAR and ImageNet."""

from typing import Any

from flax import linen as nn

from mlg_jax._types import Array
from mlg_jax.models._blocks import PlainStage
from mlg_jax.models._layers import Layers
from mlg_jax.models._parts import (
    adaptive_mean_pool,
    check_images,
    dropout,
    flatten_channels_first,
    image_shape,
    scaled,
)

STAGE_CHANNELS = ((64,), (192,), (384, 256, 256))
FIRST_CONV: dict[str, dict[str, Any]] = {
    "cifar": {"kernel_size": (3, 3)},
    "imagenet": {"kernel_size": (11, 11), "strides": (4, 4), "padding": ((2, 2), (2, 2))},
}
OTHER_SIZES = ((5, 5), (3, 3))
HIDDEN_FEATURES = 4096
GRID_SIZES = {"cifar": 3, "imagenet": 6}  # of the features at 32 x 32 and 224 x 224
MIN_SIZES = {"cifar": 15, "imagenet": 63}  # leave one position after the last pooling
DROPOUT_RATE = 0.5


class AlexNet(nn.Module):
    """Five convolutions and three dense layers, `[N, H, W, C]` to logits `[N, num_classes]`.

    The single-tower variant (Krizhevsky 2014), without local response normalisation.

    Attributes:
        num_classes: number of logits.
        layers: the factories of its layers; the published network has no norms. For `remat`, a
            stage (the convolutions up to a pooling, and this pooling) is a block.
        stem: `imagenet` (11 x 11, stride 4, features pooled to 6 x 6) or `cifar` (3 x 3, stride 1,
            features pooled to 3 x 3; otherwise the same).
        width: factor on every channel count, including those of the hidden layers.
        spec: the `ModelSpec` that the model was created from; None if it was built directly.

    Random streams: `dropout` in training (rate 0.5 before each hidden layer).

    Reference: https://arxiv.org/abs/1404.5997.
    """

    num_classes: int
    layers: Layers
    stem: str = "cifar"
    width: float = 1.0
    spec: Any = None

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """The shape of one image at the resolution that the stem is designed for."""
        return image_shape(self.stem)

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Logits of `x`, `[N, H, W, C]`, floating, normalised, at least 63 x 63 (cifar: 15)."""
        check_images(x, self.stem, MIN_SIZES.get(self.stem, 1))
        convs = (FIRST_CONV[self.stem], *({"kernel_size": size} for size in OTHER_SIZES))
        for index, (channels, options) in enumerate(zip(STAGE_CHANNELS, convs, strict=True), 1):
            stage = PlainStage(
                features=tuple(scaled(count, self.width) for count in channels),
                layers=self.layers,
                pool_window=(3, 3),
                takes_image=index == 1,
                name=f"stage{index}",
                **options,
            )
            run = self.layers.stem if index == 1 else self.layers.block
            x = run(stage, x, train=train)
        x = flatten_channels_first(adaptive_mean_pool(x, GRID_SIZES[self.stem]))
        for index in (1, 2):
            x = dropout(self, x, DROPOUT_RATE, name=f"dropout{index}", train=train)
            layer = self.layers.dense(scaled(HIDDEN_FEATURES, self.width), name=f"hidden{index}")
            x = self.layers.act(layer(x, train=train))
        return self.layers.dense(self.num_classes, name="classifier")(x, train=train)
