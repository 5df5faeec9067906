"""Fake quantisation of many tensors at once, in a few operations on one flat array."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mlg_jax._types import Array, Key
from mlg_jax.quant._fake import fake_quantize
from mlg_jax.quant._schemes import is_scaled_by_maximum, quantize_tiles, wide
from mlg_jax.quant._spec import QuantSpec

TILE = 128  # entries; every tensor is filled up with zeros to whole tiles


def fake_quantize_together(
    tensors: Sequence[Array], spec: QuantSpec, *, key: Key | None = None
) -> list[Array]:
    """`fake_quantize` of each tensor.

    A network has dozens of factors, and each would take several kernels: a GPU needs longer to
    launch them than to compute them.

    Args:
        tensors: floating-point arrays of any shapes.
        spec: the quantiser of all of them.
        key: selects at random the share `spec.ratio` of entries that is rounded; None rounds all.

    Returns:
        Arrays of the same shapes and dtypes.
    """
    if len(tensors) < 2 or not is_scaled_by_maximum(spec):
        keys = [None if key is None else jax.random.fold_in(key, i) for i in range(len(tensors))]
        return [fake_quantize(x, spec, key=k) for x, k in zip(tensors, keys, strict=True)]
    sizes = [-(-x.size // TILE) for x in tensors]
    owners = np.repeat(np.arange(len(tensors)), sizes)
    tiles = _tiles([wide(x) for x in tensors])
    is_rounded = None
    if key is not None and spec.ratio < 1.0:
        is_rounded = jax.random.bernoulli(key, spec.ratio, tiles.shape)
    values = quantize_tiles(tiles, owners, spec, is_rounded)
    shapes = tuple((x.shape, x.dtype) for x in tensors)
    return _split(values, shapes)


def _tiles(tensors: Sequence[Array]) -> Array:
    """The entries of each tensor, filled up with zeros to whole tiles, in one operation."""
    parts = []
    for x in tensors:
        parts += [x.reshape(-1), jnp.zeros(-x.size % TILE, x.dtype)]
    return jnp.concatenate(parts).reshape(-1, TILE)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _split(tiles: Array, shapes: tuple) -> list[Array]:
    """The tensors that are laid out in `tiles`, one after another.

    Backward: the cotangents are laid out in the same way; JAX would add up an array of zeros for
    each. Residuals: none.
    """
    parts, start = [], 0
    for shape, dtype in shapes:
        size = int(np.prod(shape, dtype=int))
        part = tiles[start : (start := start - (-size // TILE))].reshape(-1)[:size]
        parts.append(part.reshape(shape).astype(dtype))
    return parts


def _split_fwd(tiles: Array, shapes: tuple) -> tuple[list[Array], Array]:
    return _split(tiles, shapes), jnp.zeros((), tiles.dtype)


def _split_bwd(shapes: tuple, like: Array, cotangents: list[Array]) -> tuple[Array]:
    return (_tiles([ct.astype(like.dtype) for ct in cotangents]),)


_split.defvjp(_split_fwd, _split_bwd)
