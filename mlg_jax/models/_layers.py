"""The factories of a model's layers as one value, and the units built from these layers."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from mlg_jax._types import Array
from mlg_jax.remat import NO_REMAT, RematSpec

LayerFactory = Callable[..., Any]  # makes a module that is called as module(x, train=train)


@dataclasses.dataclass(frozen=True)
class Partial:
    """Like `functools.partial`, but comparable and hashable, as the models that hold it must be."""

    layer: type[nn.Module]
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, layer: type[nn.Module], **options: Any) -> "Partial":
        """`layer` with these options set."""
        return cls(layer, tuple(sorted(options.items())))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **{**dict(self.options), **kwargs})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers:
    """The factories that a model builds its layers with.

    The methods must be called in a module's compact method; the layers become its submodules.

    Args:
        conv, dense: factories of convolutions and dense layers, with Flax's arguments.
        norm: factory of norms; None gives the convolutions biases instead.
        act: the activation.
        remat: policy for the residuals of the backward pass.
    """

    conv: LayerFactory
    dense: LayerFactory
    norm: LayerFactory | None
    act: Callable[[Array], Array] = nn.relu
    remat: RematSpec = NO_REMAT

    def conv_norm_act(
        self,
        x: Array,
        features: int,
        name: str,
        *,
        train: bool,
        act: bool = True,
        kernel_size: tuple[int, int] = (3, 3),
        padding: tuple[tuple[int, int], tuple[int, int]] | None = None,
        **options: Any,
    ) -> Array:
        """`act(norm(conv(x)))`.

        Args:
            x: `[N, H, W, C]`.
            features: output channels.
            name: of the convolution; the norm's has `norm` in place of `conv`.
            train: passed to the layers.
            act: False leaves the activation out.
            kernel_size: of the convolution.
            padding: None pads `k // 2` on both sides.
            **options: of the convolution.

        Returns:
            `[N, H', W', features]`.
        """
        half = tuple((k // 2, k // 2) for k in kernel_size)
        conv = self.conv(
            features,
            kernel_size,
            padding=half if padding is None else padding,
            use_bias=self.norm is None,
            name=name,
            **options,
        )
        y = conv(x, train=train)
        if self.norm is not None:
            norm = self.norm(name=name.replace("conv", "norm"), follows=name)
            y = norm(y, train=train)
        return self.act(y) if act else y

    def unit(
        self,
        module: nn.Module,
        x: Array,
        features: int,
        name: str,
        *,
        is_sparse: bool = True,
        **options: Any,
    ) -> Array:
        """`conv_norm_act` in the scope of `module`, under the policy that `remat` has for units.

        `is_sparse`: whether `x` is the output of an activation that produces zeros.
        """

        def run(module: nn.Module, x: Array) -> Array:
            return self.conv_norm_act(x, features, name, **options)

        return self.remat.unit(run, name.replace("conv", "unit"), is_sparse=is_sparse)(module, x)

    def block(self, block: nn.Module, x: Array, *, train: bool, is_sparse: bool = True) -> Array:
        """`block(x)`, under the policy that `remat` has for blocks."""
        run = self.remat.block(
            lambda block, x: block(x, train=train),
            is_sparse=is_sparse,
            is_per_example=self.norm is None,
        )
        return run(block, x)

    def stem(self, block: nn.Module, x: Array, *, train: bool) -> Array:
        """`block(x)` for the first block, under the policy that `remat` has for the stem."""
        run = self.remat.stem(
            lambda block, x: block(x, train=train), "", is_per_example=self.norm is None
        )
        return run(block, x)


def with_layers(model: Any, **changes: Any) -> Any:
    """The same model with some fields of its `Layers` replaced."""
    return model.clone(layers=dataclasses.replace(model.layers, **changes))
