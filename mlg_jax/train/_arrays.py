"""The arrays of a training state by name, as checkpoints store them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlg_jax.train._partition import named_leaves
from mlg_jax.train._state import TrainState

_VARIABLES = ("params", "model_state")  # fields of the state that belong to the model


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, cannot be read, or does not match the state."""


def is_variable(name: str) -> bool:
    """Whether an array belongs to the model, not to the optimiser or the trainer."""
    return name.split("/")[0] in _VARIABLES


def split_arrays(state: TrainState) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The arrays of a state by name, those of the model and all others; typed keys as raw data."""
    arrays = {
        name: jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for name, leaf in named_leaves(state).items()
    }
    variables = {k: v for k, v in arrays.items() if is_variable(k)}
    return variables, {k: v for k, v in arrays.items() if k not in variables}


def join_arrays(template: TrainState, arrays: Mapping[str, Any]) -> TrainState:
    """A state with the structure of `template` and the values of `arrays`."""
    leaves, structure = jax.tree.flatten(template)
    values = [
        jax.random.wrap_key_data(arrays[name], impl=jax.random.key_impl(leaf))
        if _is_key(leaf)
        else arrays[name]
        for name, leaf in zip(named_leaves(template), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, values)


def abstract(arrays: Mapping[str, jax.Array]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of each array."""
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in arrays.items()
    }


def describe(arrays: Mapping[str, Any]) -> dict[str, list[Any]]:
    """`[shape, dtype]` of each array, for JSON."""
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in arrays.items()}


def digests(arrays: Mapping[str, Any]) -> dict[str, str]:
    """BLAKE2b of the dtype, shape and bytes of each array, in hexadecimal.

    Arrays must be replicated: every process digests its own copy.
    """
    return {name: _digest(_on_host(leaf)) for name, leaf in arrays.items()}


def check_same_arrays(
    expected: Mapping[str, list[Any]], found: Mapping[str, list[Any]], path: Path
) -> None:
    """Raises CheckpointError unless two descriptions agree; it names the first difference."""
    for name in (*expected, *found):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"The checkpoint {path} belongs to another model or optimiser: {name!r} must be "
                f"{_words(expected.get(name))}; got {_words(found.get(name))}."
            )


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nests names: `{"a/b": x}` becomes `{"a": {"b": x}}`."""
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
