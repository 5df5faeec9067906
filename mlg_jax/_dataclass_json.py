"""Converts frozen dataclasses to plain JSON values and, with checks, back."""

import dataclasses
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Converts dataclasses to mappings, tuples to lists and numbers to Python's own types."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: to_plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, tuple):
        return [to_plain(entry) for entry in value]
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def from_plain(cls: type[T], tree: Any, where: str) -> T:
    """Inverts `to_plain`, also for fields that are dataclasses; lists become tuples.

    Raises:
        TypeError, ValueError: the keys are not those of the fields, or a value is invalid.
    """
    types = typing.get_type_hints(cls)
    values = {}
    for name, value in entries(cls, tree, where).items():
        if dataclasses.is_dataclass(types[name]):
            value = from_plain(typing.cast(type, types[name]), value, f"{where}.{name}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def entries(
    cls: type, tree: Any, where: str, *, absent: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the mapping `tree`, whose keys must be the fields of the dataclass `cls`.

    Args:
        cls: a dataclass.
        tree: the parsed JSON value.
        where: its place in the file, for messages.
        absent: values of fields that older files do not have.

    Raises:
        ValueError: `tree` is not a mapping, or has other keys.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    if isinstance(tree, Mapping):
        tree = {**(absent or {}), **tree}
    if not isinstance(tree, Mapping) or sorted(map(str, tree)) != sorted(names):
        found = sorted(map(str, tree)) if isinstance(tree, Mapping) else tree
        raise ValueError(f"`{where}` must have the keys {sorted(names)}; got {found!r}.")
    return dict(tree)
