"""A k x k sum per channel as shifted multiply-adds, and its two transposes."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from jax import lax

from mlg_jax._types import Array, Float, LayerGeometry

# On CPU, XLA's grouped convolution is 2 to 100 times slower than these sums of slices, each of
# which it fuses into one pass over memory with the channels innermost.


def shifted_sum(
    t: Float[Array, "n h w *g i b"], basis: Float[Array, "k i b"], layer: LayerGeometry
) -> Float[Array, "n p q *g b"]:
    """`z[p, b] = sum over k, i of basis[k, i, b] t[s p + d k - padding, i, b]`."""
    # One term per k and i: with an inner sum over i, XLA:CPU takes ten times as long.
    return sum(
        seen[..., i, :] * b[i]
        for seen, b in zip(_slices(t, layer), basis, strict=True)
        for i in range(len(basis[0]))
    )


def shifted_sum_transposed(
    d_z: Float[Array, "n p q b"],
    basis: Float[Array, "k i b"],
    size: Sequence[int],
    layer: LayerGeometry,
) -> Float[Array, "n h w i b"]:
    """The gradient with respect to `t`, whose height and width are `size`.

    It is the same sum over `d_z`, dilated by the strides, with the taps reversed.
    """
    config = []
    for axis, (span, stride) in enumerate(zip(_spans(layer), layer.strides, strict=True)):
        low = span - layer.padding[axis][0]
        spread = stride * (d_z.shape[1 + axis] - 1) + 1
        config.append((low, size[axis] + span - low - spread, stride - 1))
    padded = _padded(d_z[..., None, :], config)
    slices = _taps(padded, layer, size, (1, 1))
    return sum(seen * b for seen, b in zip(slices, basis[::-1], strict=True))


def shifted_products(
    t: Float[Array, "n h w i b"], d_z: Float[Array, "n p q b"], layer: LayerGeometry
) -> Float[Array, "k i b"]:
    """The gradient with respect to `basis`: per tap, its slice of `t` times `d_z`, summed."""
    # Groups of rows are added elementwise, and the rest is summed by a product with ones: XLA:CPU
    # takes four times as long to sum over the leading axes.
    num_parts = max(n for n in range(1, 9) if d_z.shape[1] % n == 0)
    parts = [slice(m, None, num_parts) for m in range(num_parts)]
    d_z = d_z[..., None, :]

    def summed(seen: Array) -> Array:
        rows = functools.reduce(jnp.add, (seen[:, part] * d_z[:, part] for part in parts))
        flat = rows.reshape(-1, math.prod(rows.shape[-2:]))
        return (jnp.ones(len(flat), flat.dtype) @ flat).reshape(rows.shape[-2:])

    return jnp.stack([summed(seen) for seen in _slices(t, layer)])


def _slices(t: Array, layer: LayerGeometry) -> Iterator[Array]:
    """The slice of the padded `t` that each tap is multiplied by."""
    padded = _padded(t, [(*pair, 0) for pair in layer.padding])
    ends = [n - span for n, span in zip(padded.shape[1:3], _spans(layer), strict=True)]
    return _taps(padded, layer, ends, layer.strides)


def _padded(x: Array, spatial: list[tuple[int, int, int]]) -> Array:
    rest = [(0, 0, 0)] * (x.ndim - 3)
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *spatial, *rest])


def _taps(
    padded: Array, layer: LayerGeometry, size: Sequence[int], strides: tuple[int, int]
) -> Iterator[Array]:
    """One slice of `padded` per tap, in row-major order: `d k : d k + size : stride` per axis."""
    for taps in itertools.product(*map(range, window_of(layer))):
        rows, columns = (
            slice(d * k, d * k + n, stride)
            for d, k, n, stride in zip(layer.dilation, taps, size, strides, strict=True)
        )
        yield padded[:, rows, columns]


def _spans(layer: LayerGeometry) -> list[int]:
    """The distance from the first to the last tap along each axis."""
    return [d * (k - 1) for d, k in zip(layer.dilation, window_of(layer), strict=True)]


def window_of(layer: LayerGeometry) -> tuple[int, int]:
    """Height and width of a convolution's kernel."""
    window = layer.kernel_shape.window
    assert window is not None, "a convolution"
    return window
