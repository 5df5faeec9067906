"""Architectures by name; each is data, its layers are partials of one convolution."""

import functools
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from mlg_jax.models._blocks import BasicBlock, BottleneckBlock
from mlg_jax.models._shapes import scaled
from mlg_jax.models.alexnet import AlexNet
from mlg_jax.models.mobilenet_v2 import MobileNetV2
from mlg_jax.models.resnet import ResNet
from mlg_jax.models.squeezenet import SqueezeNet
from mlg_jax.models.vgg import VGG

BASE_CHANNELS = 64


def _resnet(stage_sizes: Any, block: Any, *, width: float, **options: Any) -> ResNet:
    return ResNet(stage_sizes, block, base_channels=scaled(BASE_CHANNELS, width), **options)


def _without_norm(network: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """As published: biases in the place of norms."""
    return network(**{**options, "norm": None})


MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet10": functools.partial(_resnet, (1, 1, 1, 1), BasicBlock),
    "resnet18": functools.partial(_resnet, (2, 2, 2, 2), BasicBlock),
    "resnet34": functools.partial(_resnet, (3, 4, 6, 3), BasicBlock),
    "resnet50": functools.partial(_resnet, (3, 4, 6, 3), BottleneckBlock),
    "resnet101": functools.partial(_resnet, (3, 4, 23, 3), BottleneckBlock),
    "resnet152": functools.partial(_resnet, (3, 8, 36, 3), BottleneckBlock),
    "vgg16": functools.partial(VGG, (2, 2, 3, 3, 3)),
    "alexnet": functools.partial(_without_norm, AlexNet),
    "squeezenet": functools.partial(_without_norm, SqueezeNet),
    "mobilenet_v2": MobileNetV2,
}
