"""What one kernel could be made of: factor shapes and widths, thinned to the best curve."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlg_jax._checks import check_instance, check_integer, check_real
from mlg_jax._types import KernelShape
from mlg_jax.compress._closed_form import (
    NAMES,
    Decomposition,
    balanced,
    decompose,
    rounded,
    rows_of,
)
from mlg_jax.generation import FactorShapes, GenerationSpec, factor_records


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllocationSpec:
    """What may be chosen for a layer, and how much is measured.

    Args:
        base_in: choices of Bi; 0 leaves level 1 out.
        base_out: choices of Bo as shares in (0, 1) of `min(Co, Ci K)`; leaving level 2 out is
            always a choice.
        bits: choices of each factor's width, 2 to 16; all triples are tried.
        weight_bits: width of the classifier and of kernels left ordinary; None is 32.
        num_measured: generated kernels of each layer whose divergence is measured, >= 2; that of
            those between is interpolated by their squared errors.
        num_images: calibration images used to measure, >= 1.

    Raises:
        TypeError, ValueError: an argument of another type or out of range.
    """

    base_in: tuple[int, ...] = (0, 1, 2, 3, 4, 6)
    base_out: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 15 / 16)
    bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    weight_bits: int | None = 8
    num_measured: int = 6
    num_images: int = 256

    def __post_init__(self) -> None:
        for name in ("base_in", "base_out", "bits"):
            check_instance(name, getattr(self, name), tuple)
            if not getattr(self, name):
                raise ValueError(f"`{name}` must have at least one choice; got ().")
        for base_in in self.base_in:
            check_integer("base_in", base_in, 0)
        for share in self.base_out:
            check_real("base_out", share, 0.0, 1.0, exclusive_minimum=True)
        for bits in self.bits:
            check_integer("bits", bits, 2, 16)
        if self.weight_bits is not None:
            check_integer("weight_bits", self.weight_bits, 1, 16)
        check_integer("num_measured", self.num_measured, 2)
        check_integer("num_images", self.num_images, 1)


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """One way to generate a kernel, from the closed-form projection."""

    generation: GenerationSpec
    num_bits: int
    error: float  # |W' - W|^2 / |W|^2


def candidates_of(kernel: np.ndarray, shape: KernelShape, spec: AllocationSpec) -> list[ClosedForm]:
    """The lower convex hull of squared error against bits, by bits.

    Args:
        kernel: W, `[Co, Ci, K]`.
        shape: its shape, which decides the levels there are.
        spec: the grid.
    """
    whole = decompose(kernel)
    found: list[ClosedForm] = []
    for shapes, request in _requests(shape, spec).items():
        found += _candidates(kernel, whole, request, shapes, spec.bits)
    return _lower_hull(found)


def smallest_bits(shape: KernelShape, spec: AllocationSpec) -> int:
    """The least that a layer of this shape can take."""
    ordinary = shape.size * (32 if spec.weight_bits is None else spec.weight_bits)
    widths = [min(spec.bits)] * 3
    generated = (
        _num_bits(GenerationSpec.from_bits(*request, *widths), shapes)
        for shapes, request in _requests(shape, spec).items()
    )
    return min(ordinary, *generated)


def _requests(shape: KernelShape, spec: AllocationSpec) -> dict[FactorShapes, tuple[int, int]]:
    """Every factorisation in the grid, once, with a (Bi, Bo) that asks for it."""
    rank = min(shape.out_channels, shape.in_channels * shape.taps)
    bases = {0, *(round(share * rank) for share in spec.base_out)}
    found: dict[FactorShapes, tuple[int, int]] = {}
    for base_in, base_out in itertools.product(spec.base_in, sorted(bases)):
        shapes = GenerationSpec(base_in, base_out).resolve(shape)
        if shapes is not None:
            found.setdefault(shapes, (base_in, base_out))
    return found


def _candidates(
    kernel: np.ndarray,
    whole: Decomposition,
    request: tuple[int, int],
    shapes: FactorShapes,
    widths: Sequence[int],
) -> list[ClosedForm]:
    """All triples of widths, by `|V M - W|^2 = <V'V, M M'> - 2 <V'W, M> + |W|^2`, `M = U B`.

    So every factor is rounded once a width, and no kernel is built.
    """
    values = balanced(whole, shapes)
    basis, coeff_in, coeff_out = (_grids(values.get(name), widths) for name in NAMES)
    target = kernel.reshape(len(kernel), -1)
    energy = float(np.sum(target**2))
    across = {
        bits: (None, target) if v is None else (v.T @ v, v.T @ target)
        for bits, v in coeff_out.items()
    }
    found = []
    for (basis_bits, b), (in_bits, u) in itertools.product(basis.items(), coeff_in.items()):
        rows = rows_of(b, u).reshape(shapes.basis[0], -1)
        gram = rows if shapes.coeff_out is None else rows @ rows.T
        for out_bits, (weights, projected) in across.items():
            power = np.sum(gram * (rows if weights is None else weights))
            error = energy + float(power - 2.0 * np.sum(projected * rows))
            spec = GenerationSpec.from_bits(*request, basis_bits, in_bits, out_bits)
            relative = max(error, 0.0) / max(energy, 1e-30)
            found.append(ClosedForm(spec, _num_bits(spec, shapes), relative))
    return found


def _num_bits(spec: GenerationSpec, shapes: FactorShapes) -> int:
    return sum(record.num_bits for record in factor_records(spec, shapes))


def _grids(values: np.ndarray | None, widths: Sequence[int]) -> dict[int | None, Any]:
    """The rounded factor by width; one that is not there, once."""
    return {None: None} if values is None else {bits: rounded(values, bits) for bits in widths}


def _lower_hull(candidates: Sequence[ClosedForm]) -> list[ClosedForm]:
    """Those below every line between two others, by bits; errors fall."""
    hull: list[ClosedForm] = []
    for point in sorted(candidates, key=lambda c: (c.num_bits, c.error)):
        if hull and point.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _slope(hull[-2], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _slope(left: ClosedForm, right: ClosedForm) -> float:
    return (right.error - left.error) / (right.num_bits - left.num_bits)
