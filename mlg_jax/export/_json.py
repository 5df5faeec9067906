"""JSON in files: canonical when written, validated when read."""

import json
from collections.abc import Sequence
from typing import Any

MAX_DEPTH = 64  # of nested objects and lists, because the code that reads them is recursive


def to_json(value: Any) -> bytes:
    """Compact JSON in ASCII with sorted keys: equal values give equal bytes."""
    return json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


def from_json(data: bytes, what: str, error: type[ValueError]) -> dict[str, Any]:
    """Parses a JSON object: UTF-8, no repeated keys, no NaN, nested at most `MAX_DEPTH` deep.

    Args:
        data: the bytes to parse.
        what: name of the bytes in error messages.
        error: class of the exception raised if they are invalid.
    """
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
        _check_depth(value)
    except (ValueError, RecursionError) as fault:
        raise error(f"its {what} is not valid JSON ({fault})") from None
    if not isinstance(value, dict):
        raise error(f"its {what} is not a JSON object")
    return value


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(keys := dict(pairs)) != len(pairs):
        raise ValueError("a repeated key")
    return keys


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _check_depth(value: Any) -> None:
    """Raises ValueError if `value` is nested deeper than `MAX_DEPTH`."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        lists = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for nodes in lists for child in nodes if isinstance(child, dict | list)]
    if level:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
