"""MobileNetV2 for CIFAR and ImageNet."""

import functools
from typing import Any

from flax import linen as nn

from mlg_jax._types import Array
from mlg_jax.layers import global_mean_pool
from mlg_jax.models._layers import Layers
from mlg_jax.models._parts import check_images, dropout, image_shape

# (expansion, channels, blocks) of each stage; `STRIDES` has those of the stem and the stages.
STAGES = (
    (1, 16, 1),
    (6, 24, 2),
    (6, 32, 3),
    (6, 64, 4),
    (6, 96, 3),
    (6, 160, 3),
    (6, 320, 1),
)
STRIDES = {"cifar": (1, 1, 1, 2, 2, 1, 2, 1), "imagenet": (2, 1, 2, 2, 2, 1, 2, 1)}
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
DROPOUT_RATE = 0.2


class InvertedResidual(nn.Module):
    """A 1 x 1 expansion, a 3 x 3 depthwise convolution and a linear 1 x 1 projection.

    Attributes:
        channels: of the output.
        expansion: factor on the input's channels; 1 leaves the first convolution out.
        strides: of the depthwise convolution; (1, 1) adds a shortcut if C equals `channels`.
        layers: the factories of its layers.

    Reference: https://arxiv.org/abs/1801.04381.
    """

    channels: int
    expansion: int
    strides: tuple[int, int]
    layers: Layers

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """`[N, H, W, C]` to `[N, H', W', channels]`."""
        unit = functools.partial(self.layers.unit, self, train=train)
        hidden = self.expansion * x.shape[-1]
        y = x
        if self.expansion != 1:
            y = unit(y, hidden, "expand_conv", is_sparse=False, kernel_size=(1, 1))
        y = unit(y, hidden, "depthwise_conv", strides=self.strides, feature_group_count=hidden)
        y = unit(y, self.channels, "project_conv", act=False, kernel_size=(1, 1))
        has_shortcut = self.strides == (1, 1) and x.shape[-1] == self.channels
        return x + y if has_shortcut else y


class MobileNetV2(nn.Module):
    """Inverted residuals in seven stages, `[N, H, W, C]` to logits `[N, num_classes]`.

    Depthwise kernels have one input channel, so their generation has no level 1, and level 2 only
    if the spec asks for fewer than nine bases; otherwise they stay ordinary.

    Attributes:
        num_classes: number of logits.
        layers: the factories of its layers; for `remat`, an inverted residual is a block.
        stem: `imagenet` (the published strides, 224 x 224 to 7 x 7) or `cifar` (stride 1 in the
            stem and in stage 2, 32 x 32 to 4 x 4; otherwise the same).
        width: factor on every channel count; the results are rounded to multiples of 8, but not
            below 8 or 0.9 of the exact value. The 1280 channels of the head are never reduced.
        spec: the `ModelSpec` that the model was created from; None if it was built directly.

    Random streams: `dropout` in training (rate 0.2 before the classifier).

    Reference: https://arxiv.org/abs/1801.04381.
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
        """Logits of `x`, `[N, H, W, C]`, floating, normalised."""
        check_images(x, self.stem, 1)
        x = self.layers.remat.stem(functools.partial(_stem, train=train))(self, x)
        strides = STRIDES[self.stem][1:]
        for stage, (expansion, channels, num_blocks) in enumerate(STAGES):
            for index in range(num_blocks):
                stride = strides[stage] if index == 0 else 1
                block = InvertedResidual(
                    channels=divisible(channels * self.width),
                    expansion=expansion,
                    strides=(stride, stride),
                    layers=self.layers,
                    name=f"stage{stage + 1}_block{index + 1}",
                )
                x = self.layers.block(block, x, train=train, is_sparse=False)
        features = self.layers.remat.block(
            functools.partial(_head, train=train), "head", is_sparse=False
        )(self, x)
        features = dropout(self, features, DROPOUT_RATE, name="dropout", train=train)
        return self.layers.dense(self.num_classes, name="classifier")(features, train=train)


def divisible(channels: float) -> int:
    """The multiple of 8 nearest to `channels` that is at least 8 and at least 0.9 `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _stem(net: MobileNetV2, x: Array, *, train: bool) -> Array:
    stride = STRIDES[net.stem][0]
    return net.layers.unit(
        net,
        x,
        divisible(STEM_CHANNELS * net.width),
        "stem_conv",
        is_sparse=False,
        train=train,
        strides=(stride, stride),
    )


def _head(net: MobileNetV2, x: Array, *, train: bool) -> Array:
    """The last convolution and the mean over positions, so that the block's output is small."""
    y = net.layers.unit(
        net,
        x,
        divisible(HEAD_CHANNELS * max(1.0, net.width)),
        "head_conv",
        is_sparse=False,
        train=train,
        kernel_size=(1, 1),
    )
    return global_mean_pool(y)
