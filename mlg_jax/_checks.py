"""Uniform error messages: "`name` must …; got …", raised before anything is compiled."""

from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

import jax.numpy as jnp


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`, which the message lists."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {sorted(choices)}; got {value!r}.")


def check_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> None:
    """Raises unless `value` is an integer (a bool is none) in `[minimum, maximum]`."""
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
    """Raises unless `value` is a finite real number in the interval."""
    left = "(" if exclusive_minimum else "["
    right = "inf)" if maximum is None else f"{maximum}]"
    allowed = f"a number in {left}{minimum}, {right}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be {allowed}; got {value!r}.")
    number = float(value)
    is_low = number <= minimum if exclusive_minimum else number < minimum
    is_high = number == float("inf") if maximum is None else number > maximum
    if number != number or is_low or is_high:
        raise ValueError(f"`{name}` must be {allowed}; got {value!r}.")


def check_floating(name: str, array: Any) -> None:
    """Raises TypeError unless `array` has a floating-point dtype."""
    dtype = jnp.result_type(array)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"`{name}` must have a floating-point dtype; got {dtype}.")


def check_instance(name: str, value: Any, kind: type | tuple[type, ...]) -> None:
    """Raises TypeError unless `value` is a `kind`."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        allowed = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
        raise TypeError(f"`{name}` must be {allowed}; got {value!r}.")
