"""Convolutions as matrix products and shifted products, where XLA:CPU computes them slowly.

On two cores whose matrix products reach 120 GFLOP/s, XLA:CPU reaches 25 to 90 in ordinary
convolutions, 3 to 60 in their weight gradients, and less than 1 in all passes of depthwise ones.
(Batch 128, 32 x 32, 64 channels: forward 47, here 70; weight gradient 4, here 60.)
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mlg_jax._ordering import opaque_false, vary_alike
from mlg_jax._types import Array, Float

_PATCH_BYTES = 2 * 2**20  # of the patches that exist at a time: they stay in the cache
_SMALL_BYTES = (
    4 * 2**20
)  # of all patches: below, XLA's convolution is fast enough, and compiles fast


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

    def band(self, padded: Array, start: Array | int, num_rows: int) -> Array:
        """The rows of the padded input that `num_rows` rows of outputs from `start` need."""
        num_inputs = (num_rows - 1) * self.strides[0] + self.reach[0] + 1
        return lax.dynamic_slice_in_dim(padded, start * self.strides[0], num_inputs, 1)

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
    """A convolution as products of patches, a few images or a band of rows at a time.

    Small ones, and input gradients with strides, are XLA's. Reverse mode only, to any order.
    """
    if _is_small(x, window):
        return xla_convolve(x, kernel, window)
    return _patches_times_kernel(x, kernel, window)


def _forward(x: Array, kernel: Array, window: Window) -> tuple[Array, tuple[Array, Array]]:
    return convolve_with_products(x, kernel, window), (x, kernel)


def _backward(window: Window, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return _input_gradient(x, kernel, dy, window), weight_gradient(x, dy, window)


def _input_gradient(x: Array, kernel: Array, dy: Array, window: Window) -> Array:
    """The gradient of `sum(dy * convolve(x, kernel))` with respect to x."""
    if window.strides == (1, 1):
        transposed = window.transposed(x.shape[1:3], dy.shape[1:3])
        return convolve_with_products(dy, kernel[::-1, ::-1].transpose(0, 1, 3, 2), transposed)
    return jax.vjp(lambda x: xla_convolve(x, kernel, window), x)[1](dy)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def weight_gradient(
    x: Float[Array, "n h w c"], dy: Float[Array, "n p q o"], window: Window
) -> Float[Array, "kh kw c o"]:
    """The gradient of `sum(dy * convolve(x, kernel))` with respect to the kernel."""
    shape = (*window.size, x.shape[3], dy.shape[3])
    if _is_small(x, window):
        kernel, _ = vary_alike((jnp.zeros(shape, x.dtype), x))
        return jax.vjp(lambda kernel: xla_convolve(x, kernel, window), kernel)[1](dy)[0]
    return _patches_times_cotangent(x, dy, window).reshape(shape)


def _gradient_forward(x: Array, dy: Array, window: Window) -> tuple[Array, tuple[Array, Array]]:
    return weight_gradient(x, dy, window), (x, dy)


def _gradient_backward(
    window: Window, saved: tuple[Array, Array], d_kernel: Array
) -> tuple[Array, Array]:
    x, dy = saved
    dx = _input_gradient(x, d_kernel, dy, window)
    return dx, convolve_with_products(x, d_kernel, window)


convolve_with_products.defvjp(_forward, _backward)
weight_gradient.defvjp(_gradient_forward, _gradient_backward)


def _row_bytes(x: Array, window: Window) -> int:
    """Bytes of the patches of one row of outputs of one image."""
    return window.outputs(x.shape[1:3])[1] * math.prod(window.size) * x.shape[3] * x.dtype.itemsize


def _is_small(x: Array, window: Window) -> bool:
    num_rows = x.shape[0] * window.outputs(x.shape[1:3])[0]
    return num_rows * _row_bytes(x, window) < _SMALL_BYTES


def _patches(padded: Array, window: Window, outputs: tuple[int, ...]) -> Array:
    """`[n p q, kh kw c]`."""
    shifted = [window.at(tap, padded, outputs) for tap in window.taps]
    return jnp.concatenate(shifted, axis=-1).reshape(-1, len(shifted) * padded.shape[3])


def _patches_times_kernel(x: Array, kernel: Array, window: Window) -> Array:
    """`[n p q, kh kw c] [kh kw c, o]`."""
    height, width = window.outputs(x.shape[1:3])
    weights = kernel.reshape(-1, kernel.shape[3])
    num_rows = max(1, _PATCH_BYTES // _row_bytes(x, window))

    def product(padded: Array, num_rows: int) -> Array:
        patches = _patches(padded, window, (num_rows, width))
        return (patches @ weights).reshape(padded.shape[0], num_rows, width, -1)

    def of_images(start: Array, num_images: int) -> Array:
        padded = window.padded(lax.dynamic_slice_in_dim(x, start, num_images))
        if num_rows >= height:
            return product(padded, height)
        return _in_blocks(functools.partial(of_rows, padded), like(1), num_rows, axis=1)

    def of_rows(padded: Array, start: Array, num_rows: int) -> Array:
        return product(window.band(padded, start, num_rows), num_rows)

    # Zeros that only exist once x does: XLA would make those of all layers at the start.
    zero = jnp.where(opaque_false(x), jnp.ones((), x.dtype), jnp.zeros((), x.dtype))

    def like(num_images: int) -> Array:
        return jnp.broadcast_to(zero, (num_images, height, width, kernel.shape[3]))

    return _in_blocks(of_images, like(x.shape[0]), max(1, num_rows // height), axis=0)


def _in_blocks(block: Callable[[Array, int], Array], y: Array, size: int, axis: int) -> Array:
    """Fills y with `block(start, size)` along an axis; the last one may overlap its neighbour."""
    length = y.shape[axis]
    size = min(size, length)

    def write(k: Array, y: Array) -> Array:
        start = jnp.minimum(k * size, length - size)
        return lax.dynamic_update_slice_in_dim(y, block(start, size), start, axis)

    return lax.fori_loop(0, -(-length // size), write, y)


def _patches_times_cotangent(x: Array, dy: Array, window: Window) -> Array:
    """`[kh kw c, n p q] [n p q, o]`."""
    num_rows = max(1, _PATCH_BYTES // _row_bytes(x, window))
    if num_rows >= dy.shape[1]:
        product, num_images = _patch_product, num_rows // dy.shape[1]
    else:
        product, num_images = functools.partial(_banded_product, num_rows=num_rows), 1
    return _sum_over_slices(functools.partial(product, window=window), x, dy, num_images)


def _patch_product(x: Array, dy: Array, window: Window) -> Array:
    patches = _patches(window.padded(x), window, dy.shape[1:3])
    return patches.T @ dy.reshape(-1, dy.shape[3])


def _banded_product(x: Array, dy: Array, window: Window, num_rows: int) -> Array:
    """The sum of products over bands of at most `num_rows` rows of the output."""
    height = next(n for n in range(num_rows, 0, -1) if dy.shape[1] % n == 0)
    padded = window.padded(x)

    def product(k: Array | int) -> Array:
        patches = _patches(window.band(padded, k * height, height), window, (height, dy.shape[2]))
        rows = lax.dynamic_slice_in_dim(dy, k * height, height, 1)
        return patches.T @ rows.reshape(-1, dy.shape[3])

    def add(k: Array, total: Array) -> Array:
        return total + product(k)

    return lax.fori_loop(1, dy.shape[1] // height, add, product(0))


def _sum_over_slices(
    product: Callable[[Array, Array], Array], x: Array, dy: Array, size: int
) -> Array:
    """The sum of `product` over slices of `size` images, the first of which may be smaller."""
    size = min(size, x.shape[0])
    num_slices = -(-x.shape[0] // size)
    first = x.shape[0] - (num_slices - 1) * size

    def add(k: Array, total: Array) -> Array:
        start = first + k * size
        return total + product(*(lax.dynamic_slice_in_dim(a, start, size) for a in (x, dy)))

    return lax.fori_loop(0, num_slices - 1, add, product(x[:first], dy[:first]))


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
    d_kernel = _sum_over_slices(
        functools.partial(_depthwise_sums, window=window), x, dy, num_images
    )
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
