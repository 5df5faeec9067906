"""Overflow of a bitmap: every cotangent becomes NaN, and the compiled function warns once."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlg_jax._checks import check_choice
from mlg_jax._ordering import varying_axes
from mlg_jax._types import Array
from mlg_jax.bitmap import Bitmap

ON_OVERFLOW = ("warn", "silent")


class Overflow(NamedTuple):
    """How full the bitmap of one array is; with several devices, how full the fullest one is."""

    overflowed: Array  # boolean scalar: more non-zeros than the bitmap can hold
    density: Array  # float32 scalar: share of non-zero entries
    capacity: float  # largest share of non-zero entries that the bitmap can hold


def overflow_of(bitmap: Bitmap, counts: Array) -> Overflow:
    """The fill level of a bitmap whose non-zeros per device are `counts`, `[devices]`."""
    size = max(bitmap.size, 1)
    return Overflow(
        overflowed=jnp.any(counts > bitmap.capacity),
        density=jnp.max(counts).astype(jnp.float32) / size,
        capacity=bitmap.capacity / size,
    )


def check_on_overflow(value: Any) -> None:
    """Raises ValueError unless `value` is one of `ON_OVERFLOW`."""
    check_choice("on_overflow", value, ON_OVERFLOW)


def poison(cotangents: Any, overflows: Sequence[Overflow]) -> Any:
    """Returns `cotangents`, with every entry replaced by NaN if any bitmap overflowed.

    Inside `jax.shard_map`, a cotangent that is replicated over the devices becomes NaN if any of
    their bitmaps overflowed.
    """
    if not overflows:
        return cotangents
    overflowed = functools.reduce(jnp.logical_or, (overflow.overflowed for overflow in overflows))

    def poisoned(cotangent: Array) -> Array:
        others = tuple(sorted(varying_axes(overflowed) - varying_axes(cotangent)))
        anywhere = jax.lax.pmax(overflowed.astype(jnp.int32), others) > 0 if others else overflowed
        return jnp.where(anywhere, jnp.array(jnp.nan, cotangent.dtype), cotangent)

    return jax.tree.map(poisoned, cotangents)


def warn_of(name: str, overflows: Sequence[Overflow]) -> None:
    """Makes the compiled function `name` warn at its first overflow of each bitmap.

    The callback is in a branch of its own: without an overflow nothing is called on the host.
    """
    for overflow in overflows:
        warn = functools.partial(jax.debug.callback, _warning(name, overflow.capacity))
        jax.lax.cond(
            overflow.overflowed, warn, lambda *_: None, overflow.overflowed, overflow.density
        )


def _warning(name: str, capacity: float) -> Callable[[Any, Any], None]:
    seen: list[bool] = []

    def warn(overflowed: Any, density: Any) -> None:
        if seen or not overflowed:  # `vmap` turns the branch into a select: both sides run
            return
        seen.append(True)
        warnings.warn(
            f"{name}: the bitmap has room for a share of {capacity:.3f} of the entries, but "
            f"{float(density):.3f} are non-zero, so all gradients of this call are NaN. Raise "
            "`capacity`, or use the policy 'blocks', which saves activations as they are.",
            RuntimeWarning,
            stacklevel=2,
        )

    return warn
