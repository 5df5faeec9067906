"""Estimated time of the implementations on a GPU: bytes, tensor-core arithmetic and launches."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mlg_jax._types import LayerGeometry
from mlg_jax.generation._generate import BASES_MULTIPLE
from mlg_jax.generation._shapes import FactorShapes

TILE = 64  # output channels of a tensor-core tile; fewer take as long


@dataclasses.dataclass(frozen=True)
class _Product:
    """A library call: a convolution, or a matrix product over all positions.

    Attributes:
        num_in, num_out: entries of its activations per channel; of a product without activations,
            rows of its operand and result.
        depth: entries that are summed for one result.
        channels_in, channels_out: of its activations.
    """

    num_in: int
    num_out: int
    depth: int
    channels_in: int
    channels_out: int

    def seconds(self, rates: Mapping[str, Any], dtype: Any) -> float:
        """A roofline: the longer of moving and computing, plus a launch."""
        width = jnp.dtype(dtype).itemsize
        kernel = self.depth * self.channels_out
        entries = self.num_in * self.channels_in + kernel + self.num_out * self.channels_out
        tiles = math.ceil(self.channels_out / TILE) * TILE
        flops = 2 * self.num_out * self.depth * tiles
        rate = rates["flops_per_second"].get(jnp.dtype(dtype).name)
        rate = rate or rates["flops_per_second"]["float32"]
        moved = width * entries / rates["bytes_per_second"]
        return max(moved, flops / rate) + rates["launch_seconds"]


def estimated_seconds(
    implementation: str,
    shapes: FactorShapes,
    layer: LayerGeometry,
    positions: tuple[int, int],
    rates: Mapping[str, Any],
    dtype: Any,
    *,
    is_training: bool,
) -> float:
    """The time of one layer, without what all implementations share.

    Args:
        implementation: a distinct one for these shapes.
        shapes: of the factors.
        layer: with `input_shape`.
        positions: of the input and of the output, in the whole batch.
        rates: `bytes_per_second`, `launch_seconds` and, by dtype, `flops_per_second`.
        dtype: of the computation.
        is_training: whether a backward pass follows: it computes each product again, unless its
            result is the layer's own, and two of the same size for the gradients.
    """
    products = _products(implementation, shapes, layer, positions)
    seconds = 0.0
    for index, product in enumerate(products):
        is_last = index == len(products) - 1
        times = (3 if is_last else 4) if is_training else 1
        seconds += times * product.seconds(rates, dtype)
    return seconds


def _products(
    implementation: str, shapes: FactorShapes, layer: LayerGeometry, positions: tuple[int, int]
) -> list[_Product]:
    kernel, groups = layer.kernel_shape, layer.groups
    num_in, num_out = positions
    num_bases, base_in, taps = shapes.basis
    if shapes.coeff_out is not None:
        num_bases = math.ceil(num_bases / BASES_MULTIPLE) * BASES_MULTIPLE
    all_in, depth = groups * kernel.in_channels, kernel.in_channels * taps
    if implementation == "generate":
        build = _Product(depth, depth, num_bases, num_bases, kernel.out_channels)
        whole = _Product(num_in, num_out, depth, all_in, kernel.out_channels)
        return [build, whole] if shapes.coeff_out is not None else [whole]
    across = _Product(num_out, num_out, num_bases, groups * num_bases, kernel.out_channels)
    if implementation == "factored_out":
        return [_Product(num_in, num_out, depth, all_in, groups * num_bases), across]
    inner = num_bases * base_in
    within = _Product(num_in, num_in, kernel.in_channels, all_in, groups * inner)
    bases = _Product(num_in, num_out, inner * taps, groups * inner, groups * num_bases)
    return [within, bases, across] if shapes.coeff_out is not None else [within, bases]
