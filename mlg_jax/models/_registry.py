"""Architectures by name, each a partial application of a network class."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from mlg_jax.models._blocks import BasicBlock, BottleneckBlock
from mlg_jax.models._parts import scaled
from mlg_jax.models.alexnet import AlexNet
from mlg_jax.models.cifar_cnn import CifarCNN
from mlg_jax.models.mobilenet_v2 import MobileNetV2
from mlg_jax.models.resnet import ResNet
from mlg_jax.models.squeezenet import SqueezeNet
from mlg_jax.models.vgg import VGG

BASE_CHANNELS = 64


def _resnet(stage_sizes: Any, block: Any, *, width: float, **options: Any) -> ResNet:
    return ResNet(stage_sizes, block, base_channels=scaled(BASE_CHANNELS, width), **options)


def _with(network: Callable[..., nn.Module], changes: Any, **options: Any) -> nn.Module:
    """Builds the network with `changes` to the fields of its `Layers`."""
    layers = dataclasses.replace(options.pop("layers"), **changes)
    return network(layers=layers, **options)


_BIASES = {"norm": None}  # as published: biases in place of norms

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet10": functools.partial(_resnet, (1, 1, 1, 1), BasicBlock),
    "resnet18": functools.partial(_resnet, (2, 2, 2, 2), BasicBlock),
    "resnet34": functools.partial(_resnet, (3, 4, 6, 3), BasicBlock),
    "resnet50": functools.partial(_resnet, (3, 4, 6, 3), BottleneckBlock),
    "resnet101": functools.partial(_resnet, (3, 4, 23, 3), BottleneckBlock),
    "resnet152": functools.partial(_resnet, (3, 8, 36, 3), BottleneckBlock),
    "vgg16": functools.partial(VGG, (2, 2, 3, 3, 3)),
    "alexnet": functools.partial(_with, AlexNet, _BIASES),
    "squeezenet": functools.partial(_with, SqueezeNet, _BIASES),
    "mobilenet_v2": functools.partial(_with, MobileNetV2, {"act": nn.relu6}),
    "cifar_cnn": CifarCNN,
}
