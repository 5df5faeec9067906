"""The ordinary product of a layer, and conversions between layouts of its kernel."""

import jax.numpy as jnp
from jax import lax

from mlg_jax._convolution_cpu import (
    Window,
    convolve_depthwise,
    convolve_with_products,
    xla_convolve,
)
from mlg_jax._ordering import vary_alike
from mlg_jax._platform import traced_platform
from mlg_jax._types import Array, Float, KernelShape, LayerGeometry


def convolve(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw i o"],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: tuple[tuple[int, int], ...] = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Float[Array, "n p q o"]:
    """An ordinary two-dimensional convolution (a cross-correlation, as usual in deep learning).

    On a CPU, where XLA's convolution is slow, a 1 x 1 kernel without padding is applied as a matrix
    product, a depthwise kernel as a sum of shifted products, and weight gradients in float32 and
    float64 are matrix products. (For GPUs, XLA's compiler aborts on a product with strides.)
    """
    window = Window((kernel.shape[0], kernel.shape[1]), strides, padding, dilation)
    if traced_platform() != "cpu":
        return xla_convolve(x, kernel, window, groups)
    if kernel.shape[:2] == (1, 1) and groups == 1 and not any(map(any, padding)):
        x = strided(x, strides)
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)
    if x.dtype not in (jnp.float32, jnp.float64):
        return xla_convolve(x, kernel, window, groups)
    x, kernel = vary_alike((x, kernel))
    if groups == 1 and isinstance(x.shape[0], int):  # a symbolic size cannot be divided
        return convolve_with_products(x, kernel, window)
    if groups == x.shape[3] == kernel.shape[3]:
        return convolve_depthwise(x, kernel, window)
    return xla_convolve(x, kernel, window, groups)


def convolve_as(
    layer: LayerGeometry, x: Array, kernel: Array, *, groups: int | None = None
) -> Array:
    """The product of a layer: a convolution, or `x @ kernel` for a dense layer.

    Args:
        layer: its strides, padding, dilation and groups are used.
        x: `[N, H, W, C]`, or `[..., C]` for a dense layer.
        kernel: in Flax's layout, with any number of outputs.
        groups: overrides the layer's groups.
    """
    if kernel.ndim == 2:
        return x @ kernel
    return convolve(
        x,
        kernel,
        strides=layer.strides,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups if groups is None else groups,
    )


def strided(x: Float[Array, "n h w c"], strides: tuple[int, int]) -> Array:
    """Every s-th row and column, also for a symbolic number of images."""
    return lax.slice(x, (0, 0, 0, 0), x.shape, (1, *strides, 1))


def to_layout(kernel: Float[Array, "o c k"], shape: KernelShape) -> Array:
    """`[Co, Ci, K]` to Flax's layout, `[height, width, Ci, Co]` or `[Ci, Co]`."""
    taps_first = jnp.transpose(kernel, (2, 1, 0))
    return taps_first.reshape(shape.layout)


def from_layout(kernel: Array) -> Float[Array, "o c k"]:
    """Flax's layout, `[height, width, Ci, Co]` or `[Ci, Co]`, to `[Co, Ci, K]`."""
    return jnp.transpose(kernel.reshape(-1, *kernel.shape[-2:]), (2, 1, 0))


def patches_of(layer: LayerGeometry, x: Array) -> Float[Array, "m p"]:
    """The rows of inputs that a layer multiplies by `[Co, Ci K]`, one row for each output position.

    Args:
        layer: a convolution without groups, or a dense layer.
        x: its input, `[N, H, W, C]`, or `[..., C]` for a dense layer.
    """
    assert layer.shape is not None and layer.groups == 1
    if layer.shape.window is None:
        return x.reshape(-1, x.shape[-1])
    patches = lax.conv_general_dilated_patches(
        x,
        layer.shape.window,
        layer.strides,
        layer.padding,
        rhs_dilation=layer.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return patches.reshape(-1, patches.shape[-1])
