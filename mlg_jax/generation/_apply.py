"""A layer's product with a kernel that is built on the spot, both ways, and never kept."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from mlg_jax._tie import rebuild_in_backward
from mlg_jax._types import Array, Float, KernelShape


def convolve(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw i o"],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: tuple[tuple[int, int], ...] = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Float[Array, "n p q o"]:
    """An ordinary two-dimensional convolution (a cross-correlation, as everywhere)."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def apply_built(
    product: Callable[[Array, Array], Array],
    build: Callable[[Any], Array],
    factors: Any,
    x: Array,
) -> Array:
    """`product(x, build(factors))` that keeps the factors for the backward pass, not the kernel.

    Args:
        product: `(x, kernel) -> y`, the layer's operation.
        build: factors -> kernel, in the layout that `product` takes.
        factors: quantised factors, a pytree of arrays.
        x: the layer's input.

    Returns:
        y. Residuals: the factors and x; the kernel is built again from the factors in the backward
        pass, for a cost of about `1 / (positions * batch)` of the convolution's.
    """

    def run(factors: Any, x: Array) -> Array:
        kernel = build(factors)
        return product(x, kernel.astype(x.dtype))

    return rebuild_in_backward(run)(factors, x)


def to_layout(kernel: Float[Array, "o c k"], shape: KernelShape) -> Array:
    """`[Co, Ci, K]` to Flax's layout, `[height, width, Ci, Co]` or `[Ci, Co]`."""
    taps_first = jnp.transpose(kernel, (2, 1, 0))
    return taps_first.reshape(shape.layout)


def from_layout(kernel: Array) -> Float[Array, "o c k"]:
    """Flax's layout, `[height, width, Ci, Co]` or `[Ci, Co]`, to `[Co, Ci, K]`."""
    return jnp.transpose(kernel.reshape(-1, *kernel.shape[-2:]), (2, 1, 0))
