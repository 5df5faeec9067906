"""Dense layer whose kernel comes from an injected `KernelSpec`; otherwise as in Flax Linen."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mlg_jax._types import Array, Initializer, KernelShape, LayerGeometry
from mlg_jax.kernels import KernelSpec, OrdinarySpec
from mlg_jax.layers._product import (
    INIT,
    check_layer,
    is_trained,
    kernel_product,
    quantized_input,
)
from mlg_jax.quant import ActivationSpec, QuantSpec


class Dense(nn.Module):
    """`x @ kernel + bias` over the last axis, `[..., C]` to `[..., features]`.

    Attributes are those of `flax.linen.Dense`, in its order and with its defaults, then our own;
    `Conv` documents them.
    """

    features: int
    use_bias: bool = True
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
        """Multiplies `x`, `[..., C]`, floating; `train` as in `Conv`."""
        check_layer(self, x)
        if x.ndim == 0:
            raise ValueError("`x` must have shape [..., C]; got ().")
        train = is_trained(self, train)
        x = quantized_input(self, x, train)
        geometry = LayerGeometry(
            path=self.path,
            kind="dense",
            shape=KernelShape(self.features, x.shape[-1]),
            input_shape=x.shape,
        )
        return kernel_product(self, geometry, x, train)
