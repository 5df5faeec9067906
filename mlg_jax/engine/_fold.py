"""Folds batch normalisation into the preceding convolutions: fewer arrays, fewer operations."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util

from mlg_jax._types import Array
from mlg_jax.kernels import LayerRecord
from mlg_jax.layers import layer_factors

Path = tuple[str, ...]
_ABSENT = {"scale": 1.0, "bias": 0.0}  # values for norms without these parameters


def fold_norms(records: Sequence[LayerRecord], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of the same network without norms, whose convolutions have biases instead.

    `norm(W x) = g (W x) + h` with `g = scale / sqrt(var + epsilon)` and `h = bias - mean g`. The
    gain g multiplies the output channels of W (`Kernel.scale_outputs`), after which the factors of
    W no longer lie on their quantisation grids.

    Args:
        records: the network's layers; the record of a norm names the convolution it follows.
        variables: decoded and nested, either NumPy or JAX arrays; the results are of the same type.

    Returns:
        `params`, and `batch_stats` if layers other than norms have any, for `decoded_variables`.

    Raises:
        ValueError: a norm does not follow a convolution, or a kernel cannot absorb its scale.
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
    """The convolution's parameters with the norm folded in."""
    assert conv.kernel is not None
    gain = norm["scale"] * (norm["var"] + record.epsilon) ** -0.5
    bias = params.get((*conv.path, "bias"), 0.0)
    shift = norm["bias"] + (bias - norm["mean"]) * gain
    return {**conv.kernel.scale_outputs(factors, gain), "bias": shift}
