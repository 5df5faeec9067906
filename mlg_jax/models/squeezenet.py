"""SqueezeNet 1.1 for CIFAR and ImageNet."""

import functools
from typing import Any

from flax import linen as nn
from jax import numpy as jnp

from mlg_jax._types import Array
from mlg_jax.layers import global_mean_pool, max_pool
from mlg_jax.models._layers import Layers
from mlg_jax.models._parts import check_images, dropout, image_shape, scaled

STEM_CHANNELS = 64
# Channels of the squeeze and of each expand convolution; the published numbering starts at 2.
FIRES = {
    "fire2": (16, 64),
    "fire3": (16, 64),
    "fire4": (32, 128),
    "fire5": (32, 128),
    "fire6": (48, 192),
    "fire7": (48, 192),
    "fire8": (64, 256),
    "fire9": (64, 256),
}
POOLED = ("fire3", "fire5")
STEM_CONV: dict[str, dict[str, Any]] = {
    "cifar": {},
    "imagenet": {"strides": (2, 2), "padding": ((0, 0), (0, 0))},
}
MIN_SIZES = {"cifar": 4, "imagenet": 17}  # leave two positions before the last pooling
DROPOUT_RATE = 0.5


class Fire(nn.Module):
    """A 1 x 1 convolution to few channels, then a 1 x 1 and a 3 x 3 convolution in parallel.

    Attributes:
        squeeze, expand: channels of the first convolution, and of each of the other two.
        layers: the factories of its layers.

    Reference: https://arxiv.org/abs/1602.07360.
    """

    squeeze: int
    expand: int
    layers: Layers

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """`[N, H, W, C]` to `[N, H, W, 2 expand]`."""
        unit = functools.partial(self.layers.unit, self, train=train)
        x = unit(x, self.squeeze, "squeeze_conv", kernel_size=(1, 1))
        branches = [
            unit(x, self.expand, "expand1x1_conv", kernel_size=(1, 1)),
            unit(x, self.expand, "expand3x3_conv"),
        ]
        return jnp.concatenate(branches, axis=-1)


class SqueezeNet(nn.Module):
    """Eight fire modules, `[N, H, W, C]` to non-negative logits `[N, num_classes]`.

    As published, the classifier is applied at every position, followed by the activation and the
    mean over positions. It is a 1 x 1 convolution, but made by `dense`, because classifiers are
    never generated.

    Attributes:
        num_classes: number of logits.
        layers: the factories of its layers; the published network has no norms. For `remat`, a
            fire module is a block.
        stem: `imagenet` (3 x 3, stride 2, not padded, then max-pooling) or `cifar` (3 x 3,
            stride 1, padded, no pooling; otherwise the same, with last features of 8 x 8).
        width: factor on every channel count.
        spec: the `ModelSpec` that the model was created from; None if it was built directly.

    Random streams: `dropout` in training (rate 0.5 before the classifier).

    Reference: https://arxiv.org/abs/1602.07360, version 1.1.
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
        """Logits of `x`, `[N, H, W, C]`, floating, normalised, at least 17 x 17 (cifar: 4)."""
        check_images(x, self.stem, MIN_SIZES.get(self.stem, 1))
        is_per_example = self.layers.norm is None
        stem = functools.partial(_stem, train=train)
        x = self.layers.remat.stem(stem, is_per_example=is_per_example)(self, x)
        for name, (squeeze, expand) in FIRES.items():
            fire = Fire(
                squeeze=scaled(squeeze, self.width),
                expand=scaled(expand, self.width),
                layers=self.layers,
                name=name,
            )
            x = self.layers.block(fire, x, train=train)
            if name in POOLED:
                x = _max_pool(x)
        x = dropout(self, x, DROPOUT_RATE, name="dropout", train=train)
        logits = self.layers.dense(self.num_classes, name="classifier")(x, train=train)
        return global_mean_pool(self.layers.act(logits))


def _stem(net: SqueezeNet, x: Array, *, train: bool) -> Array:
    y = net.layers.unit(
        net,
        x,
        scaled(STEM_CHANNELS, net.width),
        "stem_conv",
        is_sparse=False,
        train=train,
        **STEM_CONV[net.stem],
    )
    return _max_pool(y) if net.stem == "imagenet" else y


def _max_pool(x: Array) -> Array:
    """3 x 3 with stride 2, padded below and right to complete the last window (ceil mode)."""
    below, right = (1 - n % 2 for n in x.shape[1:3])
    return max_pool(x, (3, 3), (2, 2), ((0, below), (0, right)))
