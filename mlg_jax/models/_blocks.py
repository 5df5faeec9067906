"""The blocks of networks: residual ones, and stages without shortcuts."""

import functools

from flax import linen as nn

from mlg_jax._ordering import materialize_cotangent, run_after
from mlg_jax._types import Array
from mlg_jax.layers import max_pool
from mlg_jax.models._layers import Layers


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, of which the first has the strides, plus a shortcut, then ReLU.

    Attributes:
        channels: of the output.
        strides: of the first convolution and of the shortcut.
        layers: the factories of its layers.

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
    """Convolutions of 1 x 1, 3 x 3 with the strides, and 1 x 1, plus a shortcut, then ReLU.

    Attributes:
        channels: of the first two convolutions; the output has four times as many.
        strides: of the 3 x 3 convolution and of the shortcut.
        layers: the factories of its layers.

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


class PlainStage(nn.Module):
    """Convolutions of one kernel size with norm and activation, then max-pooling with stride 2.

    The pooling is part of the stage, so that a checkpointed stage saves only a small input.

    Attributes:
        features: output channels of each convolution.
        layers: the factories of its layers.
        kernel_size, strides, padding: of every convolution.
        pool_window: of the pooling, which is not padded.
        takes_image: whether the input is the image rather than the output of an activation.
    """

    features: tuple[int, ...]
    layers: Layers
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None
    pool_window: tuple[int, int] = (2, 2)
    takes_image: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """`[N, H, W, C]` to `[N, H', W', features[-1]]`."""
        for index, features in enumerate(self.features, 1):
            x = self.layers.unit(
                self,
                x,
                features,
                f"conv{index}",
                is_sparse=index > 1 or not self.takes_image,
                train=train,
                kernel_size=self.kernel_size,
                strides=self.strides,
                padding=self.padding,
            )
        return max_pool(x, self.pool_window, (2, 2), ((0, 0), (0, 0)))


def _shortcut(block: BasicBlock | BottleneckBlock, x: Array, y: Array, train: bool) -> Array:
    """`x` or, if the block changes the shape, its 1 x 1 convolution and norm."""
    if x.shape == y.shape:
        return x
    # Running one branch after the other, in both passes, keeps only one working set in memory.
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
