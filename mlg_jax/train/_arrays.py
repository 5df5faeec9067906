"""A state's arrays by name: what a checkpoint stores, whatever pytree they are in."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlg_jax.train._partition import named_leaves
from mlg_jax.train._state import TrainState

_VARIABLES = ("params", "model_state")  # what a model needs; the rest is the optimiser's and ours


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read or used for this state."""


def is_variable(name: str) -> bool:
    """Whether an array is the model's own."""
    return name.split("/")[0] in _VARIABLES


def split_arrays(state: TrainState) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The state's arrays by name: the model's, and all others; typed keys as their words."""
    arrays = {
        name: jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for name, leaf in named_leaves(state).items()
    }
    variables = {k: v for k, v in arrays.items() if is_variable(k)}
    return variables, {k: v for k, v in arrays.items() if k not in variables}


def join_arrays(template: TrainState, arrays: Mapping[str, Any]) -> TrainState:
    """The template with other values."""
    leaves, structure = jax.tree.flatten(template)
    values = [
        jax.random.wrap_key_data(arrays[name], impl=jax.random.key_impl(leaf))
        if _is_key(leaf)
        else arrays[name]
        for name, leaf in zip(named_leaves(template), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, values)


def abstract(arrays: Mapping[str, jax.Array]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings."""
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in arrays.items()
    }


def describe(arrays: Mapping[str, Any]) -> dict[str, list[Any]]:
    """`[shape, dtype]` of each, as JSON holds it."""
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in arrays.items()}


def digests(arrays: Mapping[str, Any]) -> dict[str, str]:
    """BLAKE2b of dtype, shape and bytes of each array, as hexadecimal digits.

    Every process computes them from what it holds, which is the whole of a replicated array.
    """
    return {name: _digest(_on_host(leaf)) for name, leaf in arrays.items()}


def check_same_arrays(
    expected: Mapping[str, list[Any]], found: Mapping[str, list[Any]], path: Path
) -> None:
    """Raises CheckpointError that names the first array in which two descriptions differ."""
    for name in (*expected, *found):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"The checkpoint {path} is of another model or optimiser: {name!r} must be "
                f"{_words(expected.get(name))}; got {_words(found.get(name))}."
            )


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = value
    return nested


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _on_host(leaf: Any) -> np.ndarray:
    return np.asarray(leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf)


def _digest(array: np.ndarray) -> str:
    head = f"{array.dtype}{list(array.shape)}".encode()
    return hashlib.blake2b(head + array.tobytes(), digest_size=32).hexdigest()


def _words(description: list[Any] | None) -> str:
    if description is None:
        return "absent"
    shape, dtype = description
    return f"{dtype}{shape}"
