"""What follows when a bitmap had too little room: every cotangent is NaN, and one warning."""

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
    """How full the bitmaps of one array are, of several devices the fullest."""

    overflowed: Array  # bool scalar: there were more non-zeros than room
    density: Array  # float32 scalar: share of non-zero entries
    capacity: float  # the share there is room for


def overflow_of(bitmap: Bitmap, counts: Array) -> Overflow:
    """Of a bitmap per device, whose non-zeros are counted in `counts`, `[devices]`."""
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
    """`cotangents`, or NaN in place of every entry if anything was lost.

    A cotangent that is the same on all devices of `jax.shard_map` is NaN if any of them lost.
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
    """Has the compiled function `name` warn, once, when it loses entries of a bitmap.

    The callback is in a branch of its own: a call without an overflow does not visit the host.
    """
    for overflow in overflows:
        warn = functools.partial(jax.debug.callback, _warning(name, overflow.capacity))
        jax.lax.cond(
            overflow.overflowed, warn, lambda *_: None, overflow.overflowed, overflow.density
        )


def _warning(name: str, capacity: float) -> Callable[[Any, Any], None]:
    seen: list[bool] = []

    def warn(overflowed: Any, density: Any) -> None:
        if seen or not overflowed:  # under `vmap` both branches run
            return
        seen.append(True)
        warnings.warn(
            f"{name}: a bitmap holds {capacity:.3f} of the entries, but {float(density):.3f} are "
            "not zero, so all gradients of this call are NaN. Raise `capacity`, or use the policy "
            "'blocks', which keeps activations dense.",
            RuntimeWarning,
            stacklevel=2,
        )

    return warn
