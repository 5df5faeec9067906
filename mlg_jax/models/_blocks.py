"""The blocks residual networks are made of."""

import functools

from flax import linen as nn

from mlg_jax._ordering import materialize_cotangent, run_after
from mlg_jax._types import Array
from mlg_jax.models._layers import Layers


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, the stride in the first, added to a shortcut; ReLU last.

    Reference: https://arxiv.org/abs/1512.03385.
    """

    channels: int
    strides: tuple[int, int]
    layers: Layers
    expansion = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """`[N, H, W, C]` to `[N, H', W', channels]`."""
        unit = functools.partial(self.layers.unit, self, train=train)
        y = unit(x, self.channels, "conv1", strides=self.strides)
        y = unit(y, self.channels, "conv2", act=False)
        return self.layers.act(materialize_cotangent(y + _shortcut(self, x, y, train)))


class BottleneckBlock(nn.Module):
    """1 x 1, 3 x 3 with the stride, 1 x 1 to four times the channels; ReLU last.

    Reference: https://arxiv.org/abs/1512.03385, with the stride in the 3 x 3 convolution.
    """

    channels: int
    strides: tuple[int, int]
    layers: Layers
    expansion = 4

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """`[N, H, W, C]` to `[N, H', W', 4 channels]`."""
        unit = functools.partial(self.layers.unit, self, train=train)
        y = unit(x, self.channels, "conv1", kernel_size=(1, 1))
        y = unit(y, self.channels, "conv2", strides=self.strides)
        y = unit(y, 4 * self.channels, "conv3", act=False, kernel_size=(1, 1))
        return self.layers.act(materialize_cotangent(y + _shortcut(self, x, y, train)))


def _shortcut(block: BasicBlock | BottleneckBlock, x: Array, y: Array, train: bool) -> Array:
    """`x`, or where the shape changes its 1 x 1 convolution and norm."""
    if x.shape == y.shape:
        return x
    # One branch after the other, in the backward pass too: each has its own working memory.
    return block.layers.unit(
        block,
        run_after(x, y),
        y.shape[-1],
        "shortcut_conv",
        train=train,
        act=False,
        kernel_size=(1, 1),
        strides=block.strides,
    )
