"""A whole model in packed form: every factor as codes at its width, everything else as it is."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mlg_jax._checks import check_instance
from mlg_jax.export._tensor import (
    PLAIN_BYTES,
    PackedTensor,
    decode_on_host,
    decode_tensor,
    pack_codes,
    pack_plain,
)
from mlg_jax.kernels import LayerRecord
from mlg_jax.quant import QuantSpec, encode, fake_quantize

PARAMS = "params"
Path = tuple[str, ...]

_encode = jax.jit(encode, static_argnums=1)  # a quarter of the time of one operation at a time


@dataclasses.dataclass(frozen=True, eq=False)
class PackedModel:
    """The arrays of a model, packed, sorted by path, and what is to be known about it."""

    tensors: tuple[PackedTensor, ...]
    manifest: Mapping[str, Any]  # what JSON can hold: architecture, preprocessing, class names …

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(tensor.nbytes for tensor in self.tensors)


def pack_variables(
    records: Sequence[LayerRecord], variables: Mapping[str, Any], manifest: Mapping[str, Any]
) -> PackedModel:
    """Packs a model's variables.

    Args:
        records: the model's layers; their factors say what is quantised, and how.
        variables: collections of nested mappings of arrays (`params`, `batch_stats`), float32; a
            flag may be a bool.
        manifest: anything JSON can hold, kept beside the arrays.

    Returns:
        The packed model. Its factors decode to `fake_quantize` of the arrays given, bit for bit.

    Raises:
        TypeError: an array is neither float32 nor bool, or the manifest is none JSON can hold.
        ValueError: a declared factor is missing or of another shape, an array is not finite or
            empty, or has an exact zero where one bit is to hold it.
    """
    check_instance("variables", variables, Mapping)
    arrays = traverse_util.flatten_dict(variables)
    quantizers = _quantizers(records, arrays)
    tensors = (
        _pack(path, arrays[path], quantizers.get(path, QuantSpec())) for path in sorted(arrays)
    )
    return PackedModel(tuple(tensors), _plain_json(manifest))


def unpack_variables(packed: PackedModel) -> dict[str, Any]:
    """The variables as nested dicts of NumPy arrays, on the host.

    Factors are on their grids: the network that takes them must not quantise them again.
    """
    return traverse_util.unflatten_dict({t.path: decode_on_host(t) for t in packed.tensors})


def decode_variables(tensors: Sequence[PackedTensor]) -> dict[str, Any]:
    """`unpack_variables` in a traced program, from tensors that may be its arguments."""
    return traverse_util.unflatten_dict({t.path: decode_tensor(t) for t in tensors})


def _quantizers(
    records: Sequence[LayerRecord], arrays: Mapping[Path, Any]
) -> dict[Path, QuantSpec]:
    """How each declared factor is quantised."""
    quantizers = {}
    for record in records:
        for factor in record.factors:
            path = (PARAMS, *record.path, factor.name)
            shape = np.shape(arrays[path]) if path in arrays else None
            if shape != factor.shape:
                raise ValueError(
                    f"`variables` must hold {'/'.join(path)} with shape {factor.shape}; "
                    f"got {'nothing' if shape is None else shape}."
                )
            quantizers[path] = factor.quant
    return quantizers


def _pack(path: Path, value: Any, spec: QuantSpec) -> PackedTensor:
    array, name = np.asarray(value), "/".join(path)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # JAX takes no other order
    if array.dtype.name not in PLAIN_BYTES:
        raise TypeError(f"`variables` must be float32 (or bool); got {array.dtype} in {name}.")
    if array.size == 0 or not np.all(np.isfinite(array)):
        what = f"shape {array.shape}" if array.size == 0 else "NaN or infinity"
        raise ValueError(f"`variables` must be finite and not empty; got {what} in {name}.")
    if spec.bits is None and spec.scheme != "tanh_norm":
        return pack_plain(path, array)
    if spec.bits is None:
        return pack_plain(path, np.asarray(fake_quantize(jnp.asarray(array), spec)))
    run = encode if spec.bits == 1 else _encode  # the former sees zeros that one bit cannot hold
    try:
        return pack_codes(path, run(jnp.asarray(array), spec))
    except ValueError as error:
        raise ValueError(f"{error} ({name})") from None


def _plain_json(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest as it will be read back."""
    check_instance("manifest", manifest, Mapping)
    try:
        return json.loads(json.dumps(manifest, allow_nan=False, sort_keys=True))
    except (TypeError, ValueError) as error:
        raise TypeError(f"`manifest` must be what JSON can hold; {error}.") from None
