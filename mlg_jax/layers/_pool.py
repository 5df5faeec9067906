"""Pooling over images."""

import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from mlg_jax._checks import check_floating, check_pair
from mlg_jax._ordering import wait_for
from mlg_jax._types import Array, Float
from mlg_jax.layers._words import join_words, split_words

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]


def max_pool(
    x: Float[Array, "n h w c"],
    window: Pair,
    strides: Pair,
    padding: Pads = ((0, 0), (0, 0)),
) -> Float[Array, "n p q c"]:
    """Largest entry of each window; padding counts as minus infinity.

    Residuals: the position of the maximum in each window, 4 bits per output (8 for more than 16
    taps). Autodiff would save x, and XLA:CPU expands its gradient into four int32 arrays as large.

    Raises:
        TypeError, ValueError: `x` is not floating or not `[N, H, W, C]`, or the window has more
            than 256 taps or is larger than the padded image.
    """
    check_floating("x", x)
    check_pair("window", window, 1)
    check_pair("strides", strides, 1)
    if x.ndim != 4:
        raise ValueError(f"`x` must have shape [N, H, W, C]; got {x.shape}.")
    if window[0] * window[1] > 256:
        raise ValueError(f"`window` must have at most 256 taps; got {window}.")
    padded = [size + sum(pads) for size, pads in zip(x.shape[1:3], padding, strict=True)]
    if any(k > size for k, size in zip(window, padded, strict=True)):
        raise ValueError(
            f"`window` must not exceed the padded image {tuple(padded)}; got {window}."
        )
    return _max_pool(x, window, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Array, window: Pair, strides: Pair, padding: Pads) -> Array:
    """Forward: the maximum over each window.

    Backward: the cotangent goes to the first tap that holds the maximum, by one shifted addition
    per tap. Residuals: that tap's number, 4 bits per output (8 if there are more than 16 taps).
    """
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        window_dimensions=(1, *window, 1),
        window_strides=(1, *strides, 1),
        padding=((0, 0), *padding, (0, 0)),
    )


def _max_pool_fwd(
    x: Array, window: Pair, strides: Pair, padding: Pads
) -> tuple[Array, tuple[Array, Array]]:
    y = _max_pool(x, window, strides, padding)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    winner = jnp.zeros(y.shape, jnp.uint8)
    for tap, (top, left) in reversed(list(_taps(window))):
        bottom = top + (y.shape[1] - 1) * strides[0] + 1
        right = left + (y.shape[2] - 1) * strides[1] + 1
        candidate = padded[:, top : bottom : strides[0], left : right : strides[1]]
        winner = jnp.where(candidate == y, jnp.uint8(tap), winner)
    words = join_words(winner, _bits(window))
    # Otherwise XLA computes the winner in the backward pass and keeps x until then.
    return wait_for(y, words), (words, jnp.zeros((0, *x.shape[1:3], 0), x.dtype))


def _max_pool_bwd(
    window: Pair, strides: Pair, padding: Pads, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array]:
    words, like = residuals
    winner = split_words(words, _bits(window), cotangent.shape[-1])
    zero = jnp.zeros((), cotangent.dtype)
    dx = jnp.zeros((), cotangent.dtype)
    for tap, offsets in _taps(window):
        edges = [
            _edges(like.shape[1 + i], cotangent.shape[1 + i], strides[i], padding[i], offsets[i])
            for i in range(2)
        ]
        share = jnp.where(winner == tap, cotangent, zero)
        dx += lax.pad(share, zero, ((0, 0, 0), *edges, (0, 0, 0)))
    return (dx,)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


def _taps(window: Pair) -> Iterator[tuple[int, Pair]]:
    """Number and offset of every tap, in row-major order."""
    return enumerate(itertools.product(range(window[0]), range(window[1])))


def _bits(window: Pair) -> int:
    return 4 if window[0] * window[1] <= 16 else 8


def _edges(
    size: int, num_outputs: int, stride: int, pads: Pair, offset: int
) -> tuple[int, int, int]:
    """The `lax.pad` configuration that puts output i at `i stride + offset - pads[0]` of `size`."""
    low = offset - pads[0]
    end = low + (num_outputs - 1) * stride + 1
    return (low, size - end, stride - 1)


def global_mean_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n c"]:
    """Mean over height and width."""
    return jnp.mean(x, axis=(1, 2))
