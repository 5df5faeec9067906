"""Runs a function on a batch slice by slice, with the working memory of one slice."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mlg_jax._types import Array


def slice_of(x: Array, num_slices: int) -> Array | jax.ShapeDtypeStruct:
    """The shape of one slice of `x`, `[N, ...]`; `x` itself if there is one slice.

    Raises:
        ValueError: `num_slices` does not divide N.
    """
    if num_slices == 1:
        return x
    if x.shape[0] % num_slices:
        raise ValueError(f"`num_slices` must divide the {x.shape[0]} examples; got {num_slices}.")
    return jax.ShapeDtypeStruct((x.shape[0] // num_slices, *x.shape[1:]), x.dtype)


def in_slices(fn: Callable[[Any], Any], batch: Any, num_slices: int) -> Any:
    """Computes `fn(batch)` slice by slice.

    Args:
        fn: maps arrays `[N, ...]` to arrays `[N, ...]`, each example independently.
        batch: a pytree of arrays `[N, ...]`.
        num_slices: a divisor of N; 1 calls `fn` directly.
    """
    if num_slices == 1:
        return fn(batch)
    return _joined(lax.map(fn, _split(batch, num_slices)))


def pull_back(
    fn: Callable[[Any, Any], Any], shared: Any, batch: Any, cotangents: Any, num_slices: int
) -> tuple[Any, Any]:
    """The cotangents of `shared` and `batch` in `fn(shared, batch)`, computed slice by slice.

    The cotangent of `shared` is the sum over the slices; it differs in rounding from that of the
    whole batch.
    """
    if num_slices == 1:
        return jax.vjp(fn, shared, batch)[1](cotangents)

    def add(total: Any, piece: Any) -> tuple[Any, Any]:
        examples, cotangents = piece
        d_shared, d_examples = jax.vjp(fn, shared, examples)[1](cotangents)
        return jax.tree.map(jnp.add, total, d_shared), d_examples

    start = jax.tree.map(jnp.zeros_like, shared)
    total, pieces = lax.scan(add, start, _split((batch, cotangents), num_slices))
    return total, _joined(pieces)


def _split(batch: Any, num_slices: int) -> Any:
    return jax.tree.map(lambda x: x.reshape(num_slices, -1, *x.shape[1:]), batch)


def _joined(pieces: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pieces)
