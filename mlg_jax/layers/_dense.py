"""Dense layer whose kernel comes from an injected provider: the convolution's case k = 1."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mlg_jax._types import Array, KernelShape, LayerRecord
from mlg_jax.generation import GenerationSpec
from mlg_jax.layers._kernel import DenseKernel, KernelChoice
from mlg_jax.layers._product import check_layer, kernel_product, quantized_input
from mlg_jax.quant import ActivationSpec, QuantSpec


class Dense(nn.Module):
    """`x @ kernel + bias` over the last axis, `[..., C]` to `[..., features]`.

    Attributes: as those of `Conv` that apply.
    """

    features: int
    use_bias: bool = True
    kernel: KernelChoice | GenerationSpec | QuantSpec = DenseKernel()
    input_quant: ActivationSpec = ActivationSpec()
    implementation: str | tuple[tuple[str, str], ...] = "auto"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Multiplies `x`, `[..., C]`, floating."""
        check_layer(self, x)
        if x.ndim == 0:
            raise ValueError("`x` must have shape [..., C]; got ().")
        x = quantized_input(self, x, train)
        record = LayerRecord(
            path=self.path,
            kind="dense",
            factors=(),
            kernel=KernelShape(self.features, x.shape[-1]),
            input_shape=x.shape,
        )
        return kernel_product(self, record, x, train)
