"""Stages of networks without shortcuts: successive convolutions, then max-pooling."""

from flax import linen as nn

from mlg_jax._types import Array
from mlg_jax.layers import max_pool
from mlg_jax.models._layers import Layers


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
