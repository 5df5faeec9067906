"""Convolution whose kernel comes from an injected `KernelSpec`; otherwise as in Flax Linen."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.lax import padtype_to_pads

from mlg_jax._checks import check_integer, check_pair
from mlg_jax._types import CONV_OUTPUT, Array, Initializer, KernelShape, LayerGeometry
from mlg_jax.kernels import KernelSpec, OrdinarySpec
from mlg_jax.layers._product import (
    INIT,
    check_layer,
    is_trained,
    kernel_product,
    quantized_input,
)
from mlg_jax.quant import ActivationSpec, QuantSpec

Pads = tuple[tuple[int, int], tuple[int, int]]
_PADDINGS = ("SAME", "SAME_LOWER", "VALID", "CIRCULAR", "REFLECT")
_MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect"}


class Conv(nn.Module):
    """Two-dimensional convolution, `[..., H, W, C]` to `[..., H', W', features]`.

    Attributes are those of `flax.linen.Conv`, in its order and with its defaults, then our own.

    Attributes:
        features: output channels, a multiple of `feature_group_count`.
        kernel_size: height and width of the kernel; an integer sets both.
        strides, kernel_dilation: positive, per axis or for both; None is 1.
        padding: `SAME`, `SAME_LOWER`, `VALID`, `CIRCULAR`, `REFLECT`, an integer, or for each axis
            an integer or a pair `(low, high)`.
        input_dilation: must be 1 (transposed convolutions are not supported).
        feature_group_count: channel groups; the number of input channels makes the layer depthwise.
        use_bias: adds a bias, one entry per feature.
        mask: must be None.
        dtype: of the computation; None follows the input and the parameters.
        param_dtype: of the parameters.
        precision: of products, as in `jax.default_matmul_precision`; None is JAX's own default.
        kernel_init: of an ordinary kernel; None is He's normal. Generated kernels have their own.
        bias_init: of the bias.
        kernel: the parametrisation of the kernel: a `KernelSpec` such as `GenerationSpec`, or a
            `QuantSpec` for an ordinary kernel that is quantised as a whole. If a spec does not
            apply to the layer's shape, the kernel is ordinary.
        input_quant: quantiser of the input.
        implementation: how a generated kernel is applied, with the same result in every case:
            `generate` builds it, then convolves; `factored_out` convolves with U B, then multiplies
            by V; `factored` multiplies by U, B and V in turn; `auto` takes the one predicted to be
            fastest. Or `(path pattern, one of these)` pairs, of which the first match decides.

    Collections: `params`; `batch_stats` holds the input quantiser's running range; `factors`, if
    given, holds quantised factors that are used in place of the parameters.
    Random streams: `quantize`, in training with partial quantisation.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    padding: str | int | Sequence[int | tuple[int, int]] = "SAME"
    input_dilation: int | Sequence[int] | None = 1
    kernel_dilation: int | Sequence[int] | None = 1
    feature_group_count: int = 1
    use_bias: bool = True
    mask: None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: Initializer | None = INIT
    bias_init: Initializer = nn.initializers.zeros_init()
    kernel: KernelSpec | QuantSpec = OrdinarySpec()
    input_quant: ActivationSpec = ActivationSpec()
    implementation: str | tuple[tuple[str, str], ...] = "auto"

    @nn.compact
    def __call__(self, x: Array, *, train: bool | None = None) -> Array:
        """Convolves `x`, `[..., H, W, C]`, floating.

        `train` controls partial quantisation, the input quantiser's range and `auto`. None means
        training if `batch_stats` is mutable or there is a random stream `quantize`.
        """
        check_layer(self, x)
        self._check(x)
        train = is_trained(self, train)
        x = quantized_input(self, x, train)
        batch = x.shape[:-3]
        if len(batch) != 1:
            x = x.reshape(-1, *x.shape[-3:])
        pads = self._pads(x)
        if self.padding in _MODES:
            x = jnp.pad(x, ((0, 0), *pads, (0, 0)), mode=_MODES[str(self.padding)])
            pads = ((0, 0), (0, 0))
        y = checkpoint_name(kernel_product(self, self._geometry(x, pads), x, train), CONV_OUTPUT)
        return y if len(batch) == 1 else y.reshape(*batch, *y.shape[-3:])

    def _geometry(self, x: Array, pads: Pads) -> LayerGeometry:
        groups = self.feature_group_count
        size = _pair("kernel_size", self.kernel_size)
        return LayerGeometry(
            path=self.path,
            kind="conv",
            shape=KernelShape(self.features, x.shape[-1] // groups, size),
            groups=groups,
            strides=_pair("strides", self.strides),
            dilation=_pair("kernel_dilation", self.kernel_dilation),
            padding=pads,
            input_shape=x.shape,
        )

    def _pads(self, x: Array) -> Pads:
        """`(low, high)` per axis; raises ValueError if the kernel exceeds the padded image."""
        kernel_size = _pair("kernel_size", self.kernel_size)
        dilation = _pair("kernel_dilation", self.kernel_dilation)
        spans = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True))
        size = x.shape[-3:-1]
        pads = _explicit(self.padding, size, spans, _pair("strides", self.strides))
        padded = tuple(n + sum(p) for n, p in zip(size, pads, strict=True))
        if any(span > n for span, n in zip(spans, padded, strict=True)):
            raise ValueError(
                f"`kernel_size` must not exceed the padded image {padded}; got {kernel_size} "
                f"with dilation {dilation}."
            )
        return pads

    def _check(self, x: Array) -> None:
        groups = self.feature_group_count
        check_integer("feature_group_count", groups, 1)
        if self.input_dilation not in (None, 1, (1, 1), [1, 1]):
            raise ValueError(f"`input_dilation` must be 1; got {self.input_dilation!r}.")
        if self.mask is not None:
            raise ValueError(f"`mask` must be None; got {self.mask!r}.")
        if x.ndim < 3:
            raise ValueError(f"`x` must have shape [..., H, W, C]; got {x.shape}.")
        if x.shape[-1] % groups or self.features % groups:
            raise ValueError(
                f"`feature_group_count` must divide the input channels {x.shape[-1]} and "
                f"`features` {self.features}; got {groups}."
            )


def _pair(name: str, value: Any) -> tuple[int, int]:
    """Converts an integer, a sequence of two or None (1) to a pair."""
    value = 1 if value is None else value
    pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
    check_pair(name, pair, 1)
    return pair


def _explicit(
    padding: Any, size: tuple[int, ...], spans: tuple[int, ...], strides: tuple[int, int]
) -> Pads:
    """`(low, high)` per axis."""
    if isinstance(padding, str):
        if padding not in _PADDINGS:
            raise ValueError(
                f"`padding` must be one of {list(_PADDINGS)}, an integer, or an integer or a pair "
                f"of integers per axis; got {padding!r}."
            )
        if padding in _MODES:
            return tuple(((span - 1) // 2, span // 2) for span in spans)  # type: ignore[return-value]
        return tuple(padtype_to_pads(size, spans, strides, padding))  # type: ignore[return-value]
    axes = padding if isinstance(padding, list | tuple) else (padding, padding)
    if len(axes) != 2:
        raise ValueError(f"`padding` must be given for two axes, (height, width); got {padding!r}.")
    pairs = tuple(tuple(axis) if isinstance(axis, list | tuple) else (axis, axis) for axis in axes)
    for pair in pairs:
        check_pair("padding", pair, 0)
    return pairs  # type: ignore[return-value]
