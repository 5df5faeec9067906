"""Batch normalisation folded into the convolutions before it: fewer arrays, fewer operations."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util

from mlg_jax._types import Array
from mlg_jax.kernels import LayerRecord
from mlg_jax.layers import layer_factors

Path = tuple[str, ...]
_ABSENT = {"scale": 1.0, "bias": 0.0}  # what a norm without them computes with


def fold_norms(records: Sequence[LayerRecord], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of the same network without norms, whose convolutions have biases instead.

    `norm(W x) = g (W x) + h` with `g = scale / sqrt(var + epsilon)` and `h = bias - mean g`; g
    multiplies the output channels of W (`Kernel.scale_outputs`), whose factors are then off their
    grids.

    Args:
        records: the network's layers; a norm's says which convolution it follows.
        variables: decoded, nested: NumPy or JAX arrays, the result is of the same kind.

    Returns:
        `params`, and `batch_stats` if anything but norms has any, for `decoded_variables`.

    Raises:
        ValueError: a norm that follows no convolution, or a kernel that cannot take up its scale.
    """
    params = traverse_util.flatten_dict(variables["params"])
    stats = traverse_util.flatten_dict(variables.get("batch_stats", {}))
    layers = {record.path: record for record in records}
    for norm in (record for record in records if record.kind == "norm"):
        conv = layers.get((*norm.path[:-1], norm.follows or ""))
        if conv is None or conv.kernel is None:
            raise ValueError(
                "`fold` must be False unless every norm follows a convolution directly; "
                f"{norm.name} does not."
            )
        values = {name: params.pop((*norm.path, name), value) for name, value in _ABSENT.items()}
        values |= {name: stats.pop((*norm.path, name)) for name in ("mean", "var")}
        folded = _folded(conv, layer_factors(variables["params"], conv), params, values, norm)
        params |= {(*conv.path, name): value for name, value in folded.items()}
    nested = {"params": params} | ({"batch_stats": stats} if stats else {})
    return {name: traverse_util.unflatten_dict(flat) for name, flat in nested.items()}


def _folded(
    conv: LayerRecord,
    factors: Mapping[str, Array],
    params: Mapping[Path, Array],
    norm: Mapping[str, Array],
    record: LayerRecord,
) -> dict[str, Any]:
    """The convolution's parameters with the norm in them."""
    assert conv.kernel is not None
    gain = norm["scale"] * (norm["var"] + record.epsilon) ** -0.5
    bias = params.get((*conv.path, "bias"), 0.0)
    shift = norm["bias"] + (bias - norm["mean"]) * gain
    return {**conv.kernel.scale_outputs(factors, gain), "bias": shift}
