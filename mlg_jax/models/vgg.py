"""VGG networks for CIFAR and ImageNet."""

import dataclasses
from typing import Any

from flax import linen as nn

from mlg_jax._types import Array
from mlg_jax.layers import global_mean_pool
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

STAGE_CHANNELS = (64, 128, 256, 512, 512)
HIDDEN_FEATURES = 4096
GRID_SIZE = 7  # of the features at 224 x 224
DROPOUT_RATE = 0.5
MIN_SIZE = 32  # five poolings by two


class VGG(nn.Module):
    """Five stages of 3 x 3 convolutions and a classifier, `[N, H, W, C]` to `[N, num_classes]`.

    Attributes:
        stage_sizes: convolutions in each of the five stages; every stage halves the image.
        num_classes: number of logits.
        layers: the factories of its layers; for `remat`, a stage is a block.
        stem: `imagenet` is the published network: no norms, convolutions with biases, features
            pooled to 7 x 7, two hidden dense layers with dropout 0.5 after each. `cifar` is the
            usual variant for small images: norms in place of biases, the mean over positions, one
            dense layer, no dropout.
        width: factor on every channel count, including those of the hidden layers.
        spec: the `ModelSpec` that the model was created from; None if it was built directly.

    Random streams: `dropout` in training with stem `imagenet`.

    Reference: https://arxiv.org/abs/1409.1556; for CIFAR https://arxiv.org/abs/1608.08710.
    """

    stage_sizes: tuple[int, int, int, int, int]
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
        """Logits of `x`, `[N, H, W, C]`, floating, normalised, at least 32 x 32."""
        check_images(x, self.stem, MIN_SIZE)
        layers = self.layers
        if self.stem == "imagenet":
            layers = dataclasses.replace(layers, norm=None)
        sizes = zip(self.stage_sizes, STAGE_CHANNELS, strict=True)
        for index, (num_convs, channels) in enumerate(sizes, 1):
            stage = PlainStage(
                features=(scaled(channels, self.width),) * num_convs,
                layers=layers,
                takes_image=index == 1,
                name=f"stage{index}",
            )
            run = layers.stem if index == 1 else layers.block
            x = run(stage, x, train=train)
        features = global_mean_pool(x) if self.stem == "cifar" else self._hidden(x, train)
        return self.layers.dense(self.num_classes, name="classifier")(features, train=train)

    def _hidden(self, x: Array, train: bool) -> Array:
        x = flatten_channels_first(adaptive_mean_pool(x, GRID_SIZE))
        for index in (1, 2):
            layer = self.layers.dense(scaled(HIDDEN_FEATURES, self.width), name=f"hidden{index}")
            x = self.layers.act(layer(x, train=train))
            x = dropout(self, x, DROPOUT_RATE, name=f"dropout{index}", train=train)
        return x
