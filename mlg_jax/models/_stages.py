"""Stages of networks without shortcuts: convolutions in a row, then max-pooling."""

from collections.abc import Callable

from flax import linen as nn

from mlg_jax._types import Array
from mlg_jax.layers import max_pool
from mlg_jax.models._blocks import ModuleFactory
from mlg_jax.models._units import run_unit
from mlg_jax.remat import NO_REMAT, RematSpec


class PlainStage(nn.Module):
    """Convolutions of one window, each with norm and activation, then max-pooling by stride 2.

    The pooling is inside, so that a checkpointed stage keeps its small input and nothing else.

    Attributes:
        features: output channels of each convolution.
        conv, norm, act: factories of the layers, and the activation function; norm None gives the
            convolutions biases instead.
        window, strides, padding: of every convolution.
        pool_window: of the pooling, which is not padded.
        takes_image: the input is no result of an activation.
        remat: what is kept for the backward pass.
    """

    features: tuple[int, ...]
    conv: ModuleFactory
    norm: ModuleFactory | None
    act: Callable[[Array], Array]
    window: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None
    pool_window: tuple[int, int] = (2, 2)
    takes_image: bool = False
    remat: RematSpec = NO_REMAT

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """`[N, H, W, C]` to `[N, H', W', features[-1]]`."""
        for index, features in enumerate(self.features, 1):
            x = run_unit(
                self,
                x,
                f"unit{index}",
                is_sparse=index > 1 or not self.takes_image,
                features=features,
                names=(f"conv{index}", f"norm{index}"),
                act=self.act,
                train=train,
                window=self.window,
                strides=self.strides,
                padding=self.padding,
            )
        return max_pool(x, self.pool_window, (2, 2), ((0, 0), (0, 0)))
