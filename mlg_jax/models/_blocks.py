"""The blocks residual networks are made of; convolution, norm and activation are injected."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from mlg_jax._types import Array

ModuleFactory = Callable[..., Any]  # makes a module, called as module(x, train=train)


@dataclasses.dataclass(frozen=True)
class LayerFactory:
    """A partial of a layer that is a value: equal parts make equal, hashable models."""

    layer: type[nn.Module]
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, layer: type[nn.Module], **options: Any) -> "LayerFactory":
        """`layer` with these options set."""
        return cls(layer, tuple(sorted(options.items())))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **{**dict(self.options), **kwargs})


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, the stride in the first, added to a shortcut; ReLU last.

    Reference: https://arxiv.org/abs/1512.03385.
    """

    channels: int
    strides: tuple[int, int]
    conv: ModuleFactory
    norm: ModuleFactory
    act: Callable[[Array], Array]
    expansion = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """`[N, H, W, C]` to `[N, H', W', channels]`."""
        y = self.conv(self.channels, strides=self.strides, name="conv1")(x, train=train)
        y = self.act(self.norm(name="norm1")(y, train=train))
        y = self.conv(self.channels, name="conv2")(y, train=train)
        y = self.norm(name="norm2")(y, train=train)
        return self.act(y + _shortcut(self, x, y, train))


class BottleneckBlock(nn.Module):
    """1 x 1, 3 x 3 with the stride, 1 x 1 to four times the channels; ReLU last.

    Reference: https://arxiv.org/abs/1512.03385, with the stride in the 3 x 3 convolution.
    """

    channels: int
    strides: tuple[int, int]
    conv: ModuleFactory
    norm: ModuleFactory
    act: Callable[[Array], Array]
    expansion = 4

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """`[N, H, W, C]` to `[N, H', W', 4 channels]`."""
        y = self.conv(self.channels, window=(1, 1), name="conv1")(x, train=train)
        y = self.act(self.norm(name="norm1")(y, train=train))
        y = self.conv(self.channels, strides=self.strides, name="conv2")(y, train=train)
        y = self.act(self.norm(name="norm2")(y, train=train))
        y = self.conv(4 * self.channels, window=(1, 1), name="conv3")(y, train=train)
        y = self.norm(name="norm3")(y, train=train)
        return self.act(y + _shortcut(self, x, y, train))


def _shortcut(block: BasicBlock | BottleneckBlock, x: Array, y: Array, train: bool) -> Array:
    """`x`, or where the shape changes its 1 x 1 convolution and norm."""
    if x.shape == y.shape:
        return x
    conv = block.conv(y.shape[-1], window=(1, 1), strides=block.strides, name="shortcut_conv")
    return block.norm(name="shortcut_norm")(conv(x, train=train), train=train)
