"""Chooses the fastest implementation by a cost model of static shapes."""

import functools
import importlib.resources
import json
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mlg_jax._platform import traced_platform
from mlg_jax._types import KernelShape, LayerGeometry
from mlg_jax.generation._roofline import estimated_seconds
from mlg_jax.generation._shapes import FactorShapes

IMPLEMENTATIONS = ("generate", "factored_out", "factored")
# Limits the arithmetic, in multiples of the least: the calibrated timings may not fit this machine.
MAX_MULTIPLY_ADDS = 1.5


def choose_implementation(
    shapes: FactorShapes, layer: LayerGeometry, dtype: Any, *, is_training: bool
) -> str:
    """The implementation with the least predicted time for this layer, batch, dtype and backend.

    Args:
        shapes: the shapes of the factors.
        layer: the layer, with `input_shape`.
        dtype: the dtype of the computation.
        is_training: whether a backward pass follows.

    Returns:
        One of `distinct_implementations(shapes)`. Its time is predicted by a linear model that was
        fitted to timings or, on a backend that was not timed, estimated by a roofline; where there
        is neither, it is the one with the fewest multiply-adds.
    """
    kind = "training" if is_training else "forward"
    backend, table = traced_platform(), _table()
    names = (f"{backend}, {name}, {kind}" for name in (jnp.dtype(dtype).name, "float32"))
    costs = next((table["seconds"][name] for name in names if name in table["seconds"]), None)
    if costs is None and backend in table["estimated"]:
        rates = table["estimated"][backend]
        return least_estimated(shapes, layer, rates, dtype, is_training=is_training)
    return cheapest(shapes, layer, costs or {}, is_training=is_training)


def least_estimated(
    shapes: FactorShapes,
    layer: LayerGeometry,
    rates: Mapping[str, Any],
    dtype: Any,
    *,
    is_training: bool,
) -> str:
    """The implementation with the least time by a roofline with these rates."""

    def seconds(implementation: str) -> float:
        positions = _positions(layer)
        return estimated_seconds(
            implementation, shapes, layer, positions, rates, dtype, is_training=is_training
        )

    return min(distinct_implementations(shapes), key=seconds)


def cheapest(
    shapes: FactorShapes,
    layer: LayerGeometry,
    costs: Mapping[str, Mapping[str, float]],
    *,
    is_training: bool,
) -> str:
    """The implementation with the least predicted time among those with little arithmetic.

    If `costs` lacks the rates of an implementation, it is the one with the fewest multiply-adds.
    """
    sizes = {e: multiply_adds(e, shapes, layer) for e in distinct_implementations(shapes)}
    fewest = min(sizes, key=sizes.__getitem__)
    if any(cost_kind(e, layer) not in costs for e in sizes):
        return fewest

    def seconds(implementation: str) -> float:
        rates = costs[cost_kind(implementation, layer)]
        features = cost_features(implementation, shapes, layer, is_training=is_training)
        return sum(rates[name] * value for name, value in features.items())

    return min((e for e in sizes if sizes[e] <= MAX_MULTIPLY_ADDS * sizes[fewest]), key=seconds)


def distinct_implementations(shapes: FactorShapes) -> tuple[str, ...]:
    """The implementations that are different programs for these factors.

    Without level 1, `factored` equals `factored_out`; without level 2, `factored_out` equals
    `generate`.
    """
    if shapes.coeff_in is None:
        return ("generate", "factored_out")
    return ("generate", "factored") if shapes.coeff_out is None else IMPLEMENTATIONS


def generation_multiply_adds(shapes: FactorShapes, kernel: KernelShape) -> int:
    """Multiply-adds of building W once: `Bo Ci Bi K` for level 1, `Co Bo Ci K` for level 2."""
    num_bases, base_in, taps = shapes.basis
    within = num_bases * kernel.in_channels * base_in * taps if shapes.coeff_in else 0
    across = kernel.size * num_bases if shapes.coeff_out else 0
    return within + across


def multiply_adds(implementation: str, shapes: FactorShapes, layer: LayerGeometry) -> int:
    """Multiply-adds of one forward pass, including those that build a kernel."""
    return sum(
        count
        for name, count in cost_features(implementation, shapes, layer, is_training=False).items()
        if name.endswith("multiply_adds")
    )


def cost_kind(implementation: str, layer: LayerGeometry) -> str:
    """The key of costs that are calibrated together: implementation and kind of convolution."""
    if layer.groups > 1:
        return f"{implementation}, grouped"
    return f"{implementation}, {'1 x 1' if layer.kernel_shape.taps == 1 else 'k x k'}"


def cost_features(
    implementation: str, shapes: FactorShapes, layer: LayerGeometry, *, is_training: bool
) -> dict[str, int]:
    """Counts (calls, entries moved, multiply-adds) in which a layer's predicted time is linear."""
    kernel = layer.kernel_shape
    assert kernel is not None
    if implementation not in distinct_implementations(shapes):
        implementation = "factored_out" if shapes.coeff_in is None else "generate"
    num_in, num_out = _positions(layer)
    num_bases, base_in, taps = shapes.basis
    groups = layer.groups
    moved = num_in * groups * kernel.in_channels + num_out * kernel.out_channels
    across = num_out * kernel.out_channels * num_bases if shapes.coeff_out else 0
    if implementation == "generate":
        return {
            "calls": 1,
            "kernel_entries": kernel.size,
            "entries": moved,
            "building_multiply_adds": generation_multiply_adds(shapes, kernel),
            "multiply_adds": num_out * kernel.size,
        }
    if implementation == "factored_out":
        rows = num_bases * kernel.in_channels * taps
        return {
            "calls": 1,
            "kernel_entries": rows,
            "entries": moved + num_out * groups * num_bases,
            "building_multiply_adds": rows * base_in if shapes.coeff_in else 0,
            "multiply_adds": num_out * groups * rows,
            "across_multiply_adds": across,
        }
    inner = (groups if shapes.coeff_out else 1) * num_bases * base_in
    return {
        "calls": 1,
        "kernel_entries": sum(map(math.prod, filter(None, shapes))),
        "entries": moved + num_out * inner // base_in,
        "inner_entries": num_in * inner,
        "multiply_adds": num_in * inner * kernel.in_channels + across,
        "shifted_multiply_adds": (num_in if is_training else num_out) * inner * taps,
    }


def _positions(layer: LayerGeometry) -> tuple[int, int]:
    """Number of input and of output positions in the whole batch."""
    # A batch of symbolic size, as in an exported program, counts as one example.
    sizes = [n if isinstance(n, int) else 1 for n in layer.input_shape[:-1]]
    if not layer.padding:
        return math.prod(sizes), math.prod(sizes)
    batch, *size = sizes
    window = layer.kernel_shape.window
    assert window is not None, "a convolution"
    axes = zip(size, layer.padding, window, layer.dilation, layer.strides, strict=True)
    outs = [(n + sum(p) - d * (k - 1) - 1) // s + 1 for n, p, k, d, s in axes]
    return batch * math.prod(size), batch * math.prod(outs)


@functools.cache
def _table() -> dict[str, Any]:
    """`seconds`: per count, by setting, kind and feature, as fitted by the calibration benchmark.

    `estimated`: the rates of a roofline by backend, for what was not timed.
    """
    file = importlib.resources.files("mlg_jax.generation") / "_costs.json"
    return json.loads(file.read_text())
