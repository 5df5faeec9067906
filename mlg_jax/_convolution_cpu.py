"""Convolutions as matrix products and shifted products, where XLA:CPU computes them slowly.

XLA:CPU reaches 3 to 60 GFLOP/s in the weight gradients of ordinary convolutions, on a machine whose
matrix products reach 120, and less than 1 in all passes of depthwise ones. (Batch 128, 32 x 32, 64
channels: 3 GFLOP/s; 47 with patches. MobileNetV2's layers: `docs/speed.md`.)
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mlg_jax._types import Array, Float

_PATCH_BYTES = 2 * 2**20  # of the patches that exist at a time: they stay in the cache


class Window(NamedTuple):
    """The geometry of a convolution: where each output position finds its inputs."""

    size: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, int]

    @property
    def taps(self) -> list[tuple[int, int]]:
        """The offsets in the padded input, row by row."""
        rows, columns = (range(0, n * d, d) for n, d in zip(self.size, self.dilation, strict=True))
        return [(i, j) for i in rows for j in columns]

    def outputs(self, inputs: tuple[int, ...]) -> tuple[int, ...]:
        """The height and width of the output for those of the input."""
        sizes = zip(inputs, self.padding, self.reach, self.strides, strict=True)
        return tuple((n + sum(p) - r - 1) // s + 1 for n, p, r, s in sizes)

    def transposed(self, inputs: tuple[int, ...], dilated: tuple[int, ...]) -> "Window":
        """The window, without strides, from the dilated outputs back to the inputs."""
        sizes = zip(inputs, self.padding, self.reach, dilated, strict=True)
        padding = tuple((r - p[0], n + p[0] - m) for n, p, r, m in sizes)
        return Window(self.size, (1, 1), padding, self.dilation)

    @property
    def reach(self) -> tuple[int, ...]:
        """How far the last tap is from the first, in rows and columns."""
        return tuple((n - 1) * d for n, d in zip(self.size, self.dilation, strict=True))

    def padded(self, x: Array) -> Array:
        """The input with its border."""
        border = ((0, 0, 0), *((low, high, 0) for low, high in self.padding), (0, 0, 0))
        return lax.pad(x, jnp.zeros((), x.dtype), border)

    def at(self, tap: tuple[int, int], padded: Array, outputs: tuple[int, ...]) -> Array:
        """The inputs at one offset, `[n p q c]`, for `outputs` (p, q) positions."""
        start = (0, *tap, 0)
        last = [t + (n - 1) * s + 1 for t, n, s in zip(tap, outputs, self.strides, strict=True)]
        limit = (padded.shape[0], *last, padded.shape[3])
        return lax.slice(padded, start, limit, (1, *self.strides, 1))


def xla_convolve(x: Array, kernel: Array, window: Window, groups: int = 1) -> Array:
    """XLA's convolution of `[n h w c]` with `[kh kw i o]`."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=window.strides,
        padding=window.padding,
        rhs_dilation=window.dilation,
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_with_products(
    x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c o"], window: Window
) -> Float[Array, "n p q o"]:
    """XLA's convolution, whose weight gradient is computed by matrix products.

    Reverse mode only, to any order.
    """
    return xla_convolve(x, kernel, window)


def _forward(x: Array, kernel: Array, window: Window) -> tuple[Array, tuple[Array, Array]]:
    return xla_convolve(x, kernel, window), (x, kernel)


def _backward(window: Window, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return input_gradient(x, kernel, dy, window), weight_gradient(x, dy, window)


def input_gradient(x: Array, kernel: Array, dy: Array, window: Window) -> Array:
    """XLA's gradient of `sum(dy * convolve(x, kernel))` with respect to x."""
    return jax.vjp(lambda x: xla_convolve(x, kernel, window), x)[1](dy)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def weight_gradient(
    x: Float[Array, "n h w c"], dy: Float[Array, "n p q o"], window: Window
) -> Float[Array, "kh kw c o"]:
    """The gradient of `sum(dy * convolve(x, kernel))` with respect to the kernel.

    The transposed patches of a few images, or of a band of rows of one image, times the cotangent.
    """
    row_bytes = dy.shape[2] * math.prod(window.size) * x.shape[3] * x.dtype.itemsize
    num_rows = max(1, _PATCH_BYTES // row_bytes)
    if num_rows >= dy.shape[1]:
        product, num_images = _patch_product, num_rows // dy.shape[1]
    else:
        product, num_images = functools.partial(_banded_product, num_rows=num_rows), 1
    d_kernel = _in_slices(functools.partial(product, window=window), x, dy, num_images)
    return d_kernel.reshape(*window.size, x.shape[3], dy.shape[3])


def _patch_product(x: Array, dy: Array, window: Window) -> Array:
    """`[kh kw c, n p q] [n p q, o]`."""
    return _padded_product(window.padded(x), dy, window)


def _padded_product(padded: Array, dy: Array, window: Window) -> Array:
    patches = [window.at(tap, padded, dy.shape[1:3]) for tap in window.taps]
    rows = jnp.concatenate(patches, axis=-1).reshape(-1, len(patches) * padded.shape[3])
    return rows.T @ dy.reshape(-1, dy.shape[3])


def _banded_product(x: Array, dy: Array, window: Window, num_rows: int) -> Array:
    """The sum of products over bands of at most `num_rows` rows of the output."""
    height = next(n for n in range(num_rows, 0, -1) if dy.shape[1] % n == 0)
    padded, stride = window.padded(x), window.strides[0]
    reach = (height - 1) * stride + window.reach[0] + 1

    def product(k: Array | int) -> Array:
        band = lax.dynamic_slice_in_dim(padded, k * height * stride, reach, 1)
        return _padded_product(band, lax.dynamic_slice_in_dim(dy, k * height, height, 1), window)

    def add(k: Array, total: Array) -> Array:
        return total + product(k)

    return lax.fori_loop(1, dy.shape[1] // height, add, product(0))


def _in_slices(product: Callable[[Array, Array], Array], x: Array, dy: Array, size: int) -> Array:
    """The sum of `product` over slices of `size` images, the first of which may be smaller."""
    num_slices = -(-x.shape[0] // size)
    first = x.shape[0] - (num_slices - 1) * size
    total = product(x[:first], dy[:first])
    if num_slices == 1:
        return total

    def add(k: Array, total: Array) -> Array:
        start = first + k * size
        return total + product(*(lax.dynamic_slice_in_dim(a, start, size) for a in (x, dy)))

    return lax.fori_loop(0, num_slices - 1, add, total)


def _gradient_forward(x: Array, dy: Array, window: Window) -> tuple[Array, tuple[Array, Array]]:
    return weight_gradient(x, dy, window), (x, dy)


def _gradient_backward(
    window: Window, saved: tuple[Array, Array], d_kernel: Array
) -> tuple[Array, Array]:
    x, dy = saved
    dx = input_gradient(x, d_kernel, dy, window)
    return dx, convolve_with_products(x, d_kernel, window)


convolve_with_products.defvjp(_forward, _backward)
weight_gradient.defvjp(_gradient_forward, _gradient_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_depthwise(
    x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw 1 c"], window: Window
) -> Float[Array, "n p q c"]:
    """A convolution of every channel with a kernel of its own: a sum of shifted products.

    Reverse mode only, to any order.
    """
    padded, outputs = window.padded(x), window.outputs(x.shape[1:3])
    weights = kernel.reshape(-1, kernel.shape[3])
    terms = [
        window.at(tap, padded, outputs) * w for tap, w in zip(window.taps, weights, strict=True)
    ]
    return functools.reduce(operator.add, terms)


def _depthwise_forward(
    x: Array, kernel: Array, window: Window
) -> tuple[Array, tuple[Array, Array]]:
    return convolve_depthwise(x, kernel, window), (x, kernel)


def _depthwise_backward(
    window: Window, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    num_images = max(1, _PATCH_BYTES // (x[0].size * x.dtype.itemsize))
    d_kernel = _in_slices(functools.partial(_depthwise_sums, window=window), x, dy, num_images)
    gaps = ((0, 0, 0), *((0, 0, s - 1) for s in window.strides), (0, 0, 0))
    dilated = lax.pad(dy, jnp.zeros((), dy.dtype), gaps)
    transposed = window.transposed(x.shape[1:3], dilated.shape[1:3])
    dx = convolve_depthwise(dilated, kernel[::-1, ::-1], transposed)
    return dx, d_kernel.reshape(kernel.shape)


def _depthwise_sums(x: Array, dy: Array, window: Window) -> Array:
    padded = window.padded(x)
    products = (window.at(tap, padded, dy.shape[1:3]) * dy for tap in window.taps)
    return jnp.stack([jnp.sum(product, (0, 1, 2)) for product in products])


convolve_depthwise.defvjp(_depthwise_forward, _depthwise_backward)
