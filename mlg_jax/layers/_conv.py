"""Convolution whose kernel comes from an injected provider."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from mlg_jax._checks import check_integer, check_pair
from mlg_jax._types import CONV_OUTPUT, Array, KernelShape, LayerRecord
from mlg_jax.generation import GenerationSpec
from mlg_jax.layers._kernel import DenseKernel, KernelChoice
from mlg_jax.layers._product import check_layer, kernel_product, quantized_input
from mlg_jax.quant import ActivationSpec, QuantSpec


class Conv(nn.Module):
    """Two-dimensional convolution, `[N, H, W, C]` to `[N, H', W', features]`.

    Attributes:
        features: output channels, a multiple of `groups`.
        window: height and width of the kernel.
        strides, dilation: positive integers, per axis.
        padding: `((top, bottom), (left, right))`; None pads `k // 2` on both sides.
        groups: channel groups; the number of input channels makes the layer depthwise.
        use_bias: adds a bias, one entry a feature.
        kernel: what the kernel is made of: a `GenerationSpec`, a `QuantSpec` for an ordinary kernel
            that is quantised as a whole, or a `KernelChoice`.
        input_quant: quantiser of the input.
        implementation: how a generated kernel is applied, the same function in every case:
            `generate` builds it, then convolves; `factored_out` convolves with U B, then multiplies
            by V; `factored` multiplies by U, B and V in turn; `auto` takes what should be fastest
            for these shapes. Or `(path pattern, one of these)` pairs, the first match decides.
        dtype: of the computation; None follows the input and the parameters.
        param_dtype: of the parameters.

    Collections: `params`; `batch_stats` holds the input quantiser's running range.
    Random streams: `quantize`, in training with partial quantisation.
    """

    features: int
    window: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    use_bias: bool = False
    kernel: KernelChoice | GenerationSpec | QuantSpec = DenseKernel()
    input_quant: ActivationSpec = ActivationSpec()
    implementation: str | tuple[tuple[str, str], ...] = "auto"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Convolves `x`, `[N, H, W, C]`, floating."""
        self._check(x)
        x = quantized_input(self, x, train)
        record = LayerRecord(
            path=self.path,
            kind="conv",
            factors=(),
            kernel=KernelShape(self.features, x.shape[-1] // self.groups, self.window),
            groups=self.groups,
            strides=self.strides,
            dilation=self.dilation,
            padding=self._padding,
            input_shape=x.shape,
        )
        return checkpoint_name(kernel_product(self, record, x, train), CONV_OUTPUT)

    def _check(self, x: Array) -> None:
        check_layer(self, x)
        check_integer("groups", self.groups, 1)
        check_pair("window", self.window, 1)
        check_pair("strides", self.strides, 1)
        check_pair("dilation", self.dilation, 1)
        if self.padding is not None:
            self._check_padding()
        if x.ndim != 4:
            raise ValueError(f"`x` must have shape [N, H, W, C]; got {x.shape}.")
        if x.shape[-1] % self.groups or self.features % self.groups:
            raise ValueError(
                f"`groups` must divide the input channels {x.shape[-1]} and `features` "
                f"{self.features}; got {self.groups}."
            )
        padded = [n + sum(p) for n, p in zip(x.shape[1:3], self._padding, strict=True)]
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.window, strict=True)]
        if any(span > size for span, size in zip(spans, padded, strict=True)):
            raise ValueError(
                f"`window` must not exceed the padded image {tuple(padded)}; got {self.window} "
                f"with dilation {self.dilation}."
            )

    def _check_padding(self) -> None:
        if not isinstance(self.padding, tuple) or len(self.padding) != 2:
            raise TypeError(
                f"`padding` must be ((top, bottom), (left, right)) or None; got {self.padding!r}."
            )
        for pair in self.padding:
            check_pair("padding", pair, 0)

    @property
    def _padding(self) -> tuple[tuple[int, int], ...]:
        return self.padding or tuple((k // 2, k // 2) for k in self.window)
