"""Batch normalisation folded into the convolutions before it: fewer arrays, fewer operations."""

from collections.abc import Mapping
from typing import Any

from mlg_jax._types import Array

Tree = Mapping[str, Any]


def fold_norms(variables: Tree, epsilon: float) -> dict[str, Any]:
    """Variables of the same network without norms, whose convolutions have biases instead.

    `norm(W x) = g (W x) + h` with `g = scale / sqrt(var + epsilon)` and `h = bias - mean g`, and g
    multiplies the rows of W, so the outermost factor takes it: V, without level 2 B (one base an
    output channel), of an ordinary kernel all of it. Those are then on no grid any more.

    Args:
        variables: decoded, nested; a norm is named as its convolution with `norm` for `conv`.
            NumPy or JAX arrays, the result is of the same kind.
        epsilon: of the norms.

    Returns:
        `params`, and `batch_stats` if anything but norms has any.

    Raises:
        ValueError: a norm without a convolution.
    """
    params, stats = _folded(variables["params"], variables.get("batch_stats", {}), epsilon)
    return {"params": params} | ({"batch_stats": stats} if stats else {})


def _folded(params: Tree, stats: Tree, epsilon: float) -> tuple[dict[str, Any], dict[str, Any]]:
    norms = {name for name, node in params.items() if _is_norm(node)}
    partners = {name.replace("norm", "conv"): name for name in norms}
    if not partners.keys() <= params.keys() - norms:
        lonely = sorted(partners.keys() - (params.keys() - norms))
        raise ValueError(f"`fold` must find a convolution for every norm; there is no {lonely[0]}.")
    kept_params: dict[str, Any] = {}
    kept_stats = {name: node for name, node in stats.items() if name not in params}
    for name in sorted(params.keys() - norms):
        node, node_stats = params[name], stats.get(name, {})
        if name in partners:
            norm = partners[name]
            node = _scaled(node, {**params[norm], **stats[norm]}, epsilon)
        elif isinstance(node, Mapping):
            node, node_stats = _folded(node, node_stats, epsilon)
        kept_params[name] = node
        kept_stats |= {name: node_stats} if node_stats else {}
    return kept_params, kept_stats


def _is_norm(node: Any) -> bool:
    return isinstance(node, Mapping) and "scale" in node


def _scaled(conv: Tree, norm: Mapping[str, Array], epsilon: float) -> dict[str, Any]:
    """The convolution's parameters with the norm in them."""
    gain = norm["scale"] * (norm["var"] + epsilon) ** -0.5
    bias = norm["bias"] + (conv.get("bias", 0.0) - norm["mean"]) * gain
    if "coeff_out" in conv:
        scaled = {"coeff_out": conv["coeff_out"] * gain[:, None]}
    elif "basis" in conv:
        scaled = {"basis": conv["basis"] * gain[:, None, None]}
    else:
        scaled = {"kernel": conv["kernel"] * gain}
    return {**conv, **scaled, "bias": bias}
