"""The blocks residual networks are made of; convolution, norm and activation are injected."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from mlg_jax._ordering import materialize_cotangent, run_after
from mlg_jax._types import Array
from mlg_jax.models._units import run_unit
from mlg_jax.remat import NO_REMAT, RematSpec

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
    norm: ModuleFactory | None
    act: Callable[[Array], Array]
    remat: RematSpec = NO_REMAT
    expansion = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """`[N, H, W, C]` to `[N, H', W', channels]`."""
        y = _unit(self, 1, x, train, self.channels, act=self.act, strides=self.strides)
        y = _unit(self, 2, y, train, self.channels)
        return self.act(materialize_cotangent(y + _shortcut(self, x, y, train)))


class BottleneckBlock(nn.Module):
    """1 x 1, 3 x 3 with the stride, 1 x 1 to four times the channels; ReLU last.

    Reference: https://arxiv.org/abs/1512.03385, with the stride in the 3 x 3 convolution.
    """

    channels: int
    strides: tuple[int, int]
    conv: ModuleFactory
    norm: ModuleFactory | None
    act: Callable[[Array], Array]
    remat: RematSpec = NO_REMAT
    expansion = 4

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """`[N, H, W, C]` to `[N, H', W', 4 channels]`."""
        y = _unit(self, 1, x, train, self.channels, act=self.act, window=(1, 1))
        y = _unit(self, 2, y, train, self.channels, act=self.act, strides=self.strides)
        y = _unit(self, 3, y, train, 4 * self.channels, window=(1, 1))
        return self.act(materialize_cotangent(y + _shortcut(self, x, y, train)))


def _unit(block: Any, label: int, x: Array, train: bool, channels: int, **options: Any) -> Array:
    """One unit in the block's scope, layers `conv<label>` and `norm<label>`."""
    names = (f"conv{label}", f"norm{label}")
    return run_unit(
        block, x, f"unit{label}", features=channels, names=names, train=train, **options
    )


def _shortcut(block: BasicBlock | BottleneckBlock, x: Array, y: Array, train: bool) -> Array:
    """`x`, or where the shape changes its 1 x 1 convolution and norm."""
    if x.shape == y.shape:
        return x
    # One branch after the other, in the backward pass too: each has its own working memory.
    return run_unit(
        block,
        run_after(x, y),
        "shortcut",
        features=y.shape[-1],
        names=("shortcut_conv", "shortcut_norm"),
        train=train,
        window=(1, 1),
        strides=block.strides,
    )
