"""Argument checks with uniform messages, "`name` must …; got …", before anything is compiled."""

from collections.abc import Collection
from numbers import Integral, Real
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`, which the message lists."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {sorted(choices)}; got {value!r}.")


def check_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> None:
    """Raises unless `value` is an integer (and not a bool) in `[minimum, maximum]`.

    Raises:
        TypeError: `value` is not an integer.
        ValueError: `value` is out of range.
    """
    allowed = f">= {minimum}" if maximum is None else f"in [{minimum}, {maximum}]"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer {allowed}; got {value!r}.")
    number = int(value)
    if number < minimum or (maximum is not None and number > maximum):
        raise ValueError(f"`{name}` must be an integer {allowed}; got {value!r}.")


def check_real(
    name: str,
    value: Any,
    minimum: float,
    maximum: float | None = None,
    *,
    exclusive_minimum: bool = False,
) -> None:
    """Raises unless `value` is a finite real number in the interval.

    Raises:
        TypeError: `value` is not a real number.
        ValueError: `value` is NaN, infinite or out of range.
    """
    left = "(" if exclusive_minimum else "["
    right = "inf)" if maximum is None else f"{maximum}]"
    allowed = f"a number in {left}{minimum}, {right}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be {allowed}; got {value!r}.")
    try:
        number = float(value)
    except OverflowError:  # an integer too large for a float
        number = float("inf") if cast(int, value) > 0 else float("-inf")
    is_low = number <= minimum if exclusive_minimum else number < minimum
    is_high = number == float("inf") if maximum is None else number > maximum
    if number != number or is_low or is_high:
        raise ValueError(f"`{name}` must be {allowed}; got {value!r}.")


def check_pair(name: str, value: Any, minimum: int) -> None:
    """Raises unless `value` is a tuple of two integers >= `minimum`.

    Raises:
        TypeError: `value` is not a tuple of two integers.
        ValueError: an integer is below `minimum`.
    """
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"`{name}` must be a tuple of two integers >= {minimum}; got {value!r}.")
    for entry in value:
        check_integer(name, entry, minimum)


def check_float_dtype(name: str, dtype: Any) -> None:
    """Raises unless `dtype` is a floating-point dtype that JAX's configuration allows.

    Raises:
        TypeError: `dtype` is not a floating-point dtype.
        ValueError: `dtype` is float64 and `jax_enable_x64` is off.
    """
    try:
        is_floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        is_floating = False
    if not is_floating:
        raise TypeError(f"`{name}` must be a floating-point dtype; got {dtype!r}.")
    if jnp.dtype(dtype).itemsize == 8 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"`{name}` must have at most 32 bits unless jax_enable_x64 is set; got float64."
        )


def check_floating(name: str, array: Any) -> None:
    """Raises TypeError unless `array` is an array with a floating-point dtype."""
    if not isinstance(array, jax.Array | np.ndarray | np.generic):
        raise TypeError(f"`{name}` must be an array; got {array!r}.")
    dtype = array.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"`{name}` must have a floating-point dtype; got {dtype}.")


def check_instance(name: str, value: Any, kind: type | tuple[type, ...]) -> None:
    """Raises TypeError unless `value` is an instance of `kind`."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        allowed = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
        raise TypeError(f"`{name}` must be {allowed}; got {value!r}.")
