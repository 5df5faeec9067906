"""Builds the schema from configuration files and command-line overrides."""

import ast
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from mlg_jax.config._schema import ExperimentConfig


class ConfigError(ValueError):
    """An unknown key or an invalid value; the message names the key, the value and the choices."""


def parse_config(
    config: Mapping[str, Any] | ml_collections.ConfigDict,
    overrides: Mapping[str, str] | None = None,
) -> ExperimentConfig:
    """Turns a configuration and its command-line overrides into frozen specs.

    Args:
        config: what `get_config` of a configuration file returns.
        overrides: such as `{"student.penalty": "0.01"}`; a value that is not a Python literal is a
            string.

    Returns:
        The experiment.

    Raises:
        ConfigError: a key is unknown (the message lists the valid ones) or missing, or a value is
            invalid (the message states what is allowed).
    """
    tree = _copied(config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config)
    for key, text in (overrides or {}).items():
        _override(tree, key, text)
    built = _build(ExperimentConfig, tree, "config")
    assert isinstance(built, ExperimentConfig)
    return built


def _copied(tree: Any) -> Any:
    """A deep copy in which mappings that a file uses twice become separate."""
    return {k: _copied(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def _override(tree: dict[str, Any], key: str, text: str) -> None:
    """Sets `a.b.c` to the literal in `text`; unknown keys are left to the schema."""
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"config.{key} must name a value; {parent!r} has no parts.")
    try:
        tree[last] = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        tree[last] = {"none": None, "true": True, "false": False}.get(text.lower(), text)


def _build(spec: type, tree: Any, key: str) -> Any:
    """Builds the dataclass `spec` from nested mappings."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{key} must have parts ({_names(spec)}); got {tree!r}.")
    hints = typing.get_type_hints(spec)
    for name, value in tree.items():
        if name not in hints:
            raise ConfigError(
                f"{key}.{name} does not exist (got {value!r}); it has {_names(spec)}."
            )
    required = (f.name for f in dataclasses.fields(spec) if _is_required(f))
    missing = [name for name in required if name not in tree]
    if missing:
        raise ConfigError(f"{key}.{missing[0]} is missing.")
    values = {name: _value(hints[name], tree[name], f"{key}.{name}") for name in tree}
    try:
        return spec(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from error


def _value(hint: Any, value: Any, key: str) -> Any:
    entry = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    if dataclasses.is_dataclass(entry) and isinstance(value, list | tuple):
        build = typing.cast(type, entry)
        return tuple(_build(build, part, f"{key}[{i}]") for i, part in enumerate(value))
    nested = next((t for t in _alternatives(hint) if dataclasses.is_dataclass(t)), None)
    if nested is not None and value is not None:
        return _build(typing.cast(type, nested), value, key)
    return tuple(value) if isinstance(value, list) else value


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _names(spec: Any) -> str:
    return ", ".join(sorted(field.name for field in dataclasses.fields(spec)))
