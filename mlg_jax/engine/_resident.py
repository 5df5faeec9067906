"""Representations of the weights in memory between calls, and their decoding in a program."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from mlg_jax._types import Array
from mlg_jax.export import PackedModel, decode_variables, to_codes, unpack_variables
from mlg_jax.quant import QuantizedTensor, decode

Tree = Mapping[str, Any]
Transform = Callable[[Tree], Tree]


class Resident(NamedTuple):
    """Arrays on the device, and the traceable function that decodes them to variables."""

    arrays: list[Array]
    to_variables: Callable[[list[Array]], Tree]


def make_resident(packed: PackedModel, residency: str, to_served: Transform) -> Resident:
    """Moves the tensors of a packed model to the default device.

    Args:
        packed: the model.
        residency: one of `RESIDENCIES`.
        to_served: applied to the decoded variables: once for `float`, otherwise in every call.
    """
    stored, to_variables = RESIDENCIES[residency](packed, to_served)
    # A flat list, because JAX processes a program's arguments in every call: trees take longer.
    leaves, structure = jax.tree.flatten(stored)
    return Resident(
        jax.device_put(leaves),
        lambda arrays: to_variables(jax.tree.unflatten(structure, arrays)),
    )


def _floats(packed: PackedModel, to_served: Transform) -> tuple[Any, Callable[[Any], Tree]]:
    """Factors with 32 bits per entry, decoded on the host."""
    return to_served(unpack_variables(packed)), lambda variables: variables


def _codes(packed: PackedModel, to_served: Transform) -> tuple[Any, Callable[[Any], Tree]]:
    """Integers with 8 or 16 bits per entry."""
    quantized = {t.path: to_codes(t) for t in packed.tensors if t.bits is not None}
    plain = traverse_util.flatten_dict(unpack_variables(packed))
    stored = {path: quantized.get(path, value) for path, value in plain.items()}

    def to_variables(stored: Any) -> Tree:
        values = {path: _value(entry) for path, entry in stored.items()}
        return to_served(traverse_util.unflatten_dict(values))

    return stored, to_variables


def _value(entry: QuantizedTensor | Array | np.ndarray) -> Any:
    return decode(entry) if isinstance(entry, QuantizedTensor) else entry


def _words(packed: PackedModel, to_served: Transform) -> tuple[Any, Callable[[Any], Tree]]:
    """Codes in their exact number of bits."""
    return packed.tensors, lambda tensors: to_served(decode_variables(tensors))


RESIDENCIES = {"float": _floats, "codes": _codes, "packed": _words}
