"""Packs the variables of a model: quantised factors as bit-packed codes, the rest unchanged."""

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

_encode = jax.jit(encode, static_argnums=1)  # takes a quarter of the time of eager execution


@dataclasses.dataclass(frozen=True, eq=False)
class PackedModel:
    """The packed arrays of a model, sorted by path, and a manifest that describes it."""

    tensors: tuple[PackedTensor, ...]
    manifest: Mapping[str, Any]  # JSON-serialisable: architecture, preprocessing, class names, ...

    @property
    def nbytes(self) -> int:
        """Total bytes of the arrays."""
        return sum(tensor.nbytes for tensor in self.tensors)


def pack_variables(
    records: Sequence[LayerRecord], variables: Mapping[str, Any], manifest: Mapping[str, Any]
) -> PackedModel:
    """Packs a model's variables.

    Args:
        records: the layers of the model; their factors declare which arrays are quantised, and
            how.
        variables: collections (`params`, `batch_stats`) of nested mappings of arrays, float32 or
            bool.
        manifest: JSON-serialisable metadata stored with the arrays.

    Returns:
        The packed model. Its factors decode to `fake_quantize` of the given arrays, bit for bit.

    Raises:
        TypeError: an array is neither float32 nor bool, or `manifest` is not JSON-serialisable.
        ValueError: a declared factor is missing or has another shape, an array is empty or not
            finite, or an array to be stored in one bit contains an exact zero.
    """
    check_instance("variables", variables, Mapping)
    arrays = traverse_util.flatten_dict(variables)
    quantizers = _quantizers(records, arrays)
    tensors = (
        _pack(path, arrays[path], quantizers.get(path, QuantSpec())) for path in sorted(arrays)
    )
    return PackedModel(tuple(tensors), _plain_json(manifest))


def round_floats(packed: PackedModel) -> PackedModel:
    """The model with its float32 arrays rounded to binary16; factors stay as they are.

    Raises:
        ValueError: binary16 cannot represent the magnitude of an entry.
    """
    return dataclasses.replace(packed, tensors=tuple(map(_rounded, packed.tensors)))


def _rounded(tensor: PackedTensor) -> PackedTensor:
    if tensor.scheme != "float32":
        return tensor
    values = decode_on_host(tensor)
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    if not np.array_equal(np.isfinite(rounded), np.isfinite(values)):
        raise ValueError(
            f"`float_bits` must be 32 for magnitudes above {np.finfo(np.float16).max:,.0f}, as in "
            f"{'/'.join(tensor.path)}; got 16."
        )
    return pack_plain(tensor.path, rounded)


def unpack_variables(packed: PackedModel) -> dict[str, Any]:
    """Decodes the variables to nested dictionaries of NumPy arrays, on the host.

    Factors are already quantised: the network that uses them must not quantise them again.
    """
    return traverse_util.unflatten_dict({t.path: decode_on_host(t) for t in packed.tensors})


def decode_variables(tensors: Sequence[PackedTensor]) -> dict[str, Any]:
    """`unpack_variables` in a traced program; the tensors may be its arguments."""
    return traverse_util.unflatten_dict({t.path: decode_tensor(t) for t in tensors})


def _quantizers(
    records: Sequence[LayerRecord], arrays: Mapping[Path, Any]
) -> dict[Path, QuantSpec]:
    """The quantiser of each declared factor, by path."""
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
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # JAX rejects other byte orders
    if array.dtype.name not in ("float32", "bool"):
        raise TypeError(f"`variables` must be float32 (or bool); got {array.dtype} in {name}.")
    if array.size == 0 or not np.all(np.isfinite(array)):
        what = f"shape {array.shape}" if array.size == 0 else "NaN or infinity"
        raise ValueError(f"`variables` must be finite and not empty; got {what} in {name}.")
    if spec.is_identity:
        return pack_plain(path, array)
    if spec.bits is None:
        return pack_plain(path, np.asarray(fake_quantize(jnp.asarray(array), spec)))
    # Only eager execution can raise an error for zeros, which one bit cannot represent.
    run = encode if spec.bits == 1 else _encode
    try:
        return pack_codes(path, run(jnp.asarray(array), spec))
    except ValueError as error:
        raise ValueError(f"{error} ({name})") from None


def _plain_json(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest as JSON would read it back."""
    check_instance("manifest", manifest, Mapping)
    try:
        return json.loads(json.dumps(manifest, allow_nan=False, sort_keys=True))
    except (TypeError, ValueError) as error:
        raise TypeError(f"`manifest` must be JSON-serialisable; {error}.") from None
