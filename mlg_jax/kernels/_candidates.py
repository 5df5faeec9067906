"""The kernels of the MLG method that one trained kernel could become, thinned to the best curve."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlg_jax._types import KernelShape
from mlg_jax.generation import (
    Decomposition,
    FactorShapes,
    balanced,
    closed_form,
    decompose_fully,
    rows_of,
)
from mlg_jax.kernels._generated import GenerationSpec
from mlg_jax.quant import round_clipped


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """One way to generate a kernel, from the closed-form projection."""

    generation: GenerationSpec
    num_bits: int
    error: float  # |W' - W|^2 / |W|^2


@dataclasses.dataclass(frozen=True)
class CandidateGrid:
    """What is tried for a kernel.

    Args:
        base_in: choices of Bi; 0 leaves level 1 out.
        base_out: choices of Bo as shares of `min(Co, Ci K)`; leaving level 2 out is always one.
        bits: choices of each factor's width; all triples are tried.
    """

    base_in: tuple[int, ...]
    base_out: tuple[float, ...]
    bits: tuple[int, ...]

    def candidates(self, kernel: np.ndarray, shape: KernelShape) -> list[ClosedForm]:
        """The lower convex hull of squared error against bits, by bits; `kernel` [Co, Ci, K]."""
        whole = decompose_fully(kernel)
        found: list[ClosedForm] = []
        for shapes, request in self._requests(shape).items():
            found += _candidates(kernel, whole, request, shapes, self.bits)
        return _lower_hull(found)

    def smallest_bits(self, shape: KernelShape) -> int | None:
        """The fewest bits of a generated kernel of this shape; None: no spec applies to it."""
        widths = (min(self.bits),) * 3
        generated = (
            _num_bits(GenerationSpec.from_bits(*request, *widths), shapes)
            for shapes, request in self._requests(shape).items()
        )
        return min(generated, default=None)

    def _requests(self, shape: KernelShape) -> dict[FactorShapes, tuple[int, int]]:
        """Every factorisation in the grid, once, with a (Bi, Bo) that asks for it."""
        rank = min(shape.out_channels, shape.in_channels * shape.taps)
        bases = {0, *(round(share * rank) for share in self.base_out)}
        found: dict[FactorShapes, tuple[int, int]] = {}
        for base_in, base_out in itertools.product(self.base_in, sorted(bases)):
            shapes = GenerationSpec(base_in, base_out).resolve(shape)
            if shapes is not None:
                found.setdefault(shapes, (base_in, base_out))
        return found


def rounded_kernel(kernel: np.ndarray, spec: GenerationSpec, shape: KernelShape) -> np.ndarray:
    """The generated kernel `[Co, Ci, K]` of the closed-form projection of `kernel`."""
    shapes = spec.resolve(shape)
    assert shapes is not None, "the layer is generated"
    values = closed_form(kernel, shapes)
    basis, coeff_in, coeff_out = (
        None if (v := values.get(name)) is None else _rounded(v, getattr(spec, name).bits)
        for name in FactorShapes._fields
    )
    assert basis is not None
    rows = rows_of(basis, coeff_in).reshape(len(basis), -1)
    product = rows if coeff_out is None else coeff_out @ rows
    return product.reshape(kernel.shape)


def _rounded(values: np.ndarray, bits: int | None) -> np.ndarray:
    return values if bits is None else round_clipped(values, bits)


def _candidates(
    kernel: np.ndarray,
    whole: Decomposition,
    request: tuple[int, int],
    shapes: FactorShapes,
    widths: Sequence[int],
) -> list[ClosedForm]:
    """All triples of widths, by `|V M - W|^2 = <V'V, M M'> - 2 <V'W, M> + |W|^2`, `M = U B`.

    So every factor is rounded once for each width, and no kernel is built.
    """
    values = balanced(whole, shapes)
    basis, coeff_in, coeff_out = (_grids(values.get(n), widths) for n in FactorShapes._fields)
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
    """`|B| qb + |U| qu + |V| qv`."""
    present = {name: shape for name, shape in shapes._asdict().items() if shape is not None}
    return sum(int(np.prod(s)) * getattr(spec, n).stored_bits for n, s in present.items())


def _grids(values: np.ndarray | None, widths: Sequence[int]) -> dict[int | None, Any]:
    """The rounded factor by width; one that does not exist, once."""
    return (
        {None: None} if values is None else {bits: round_clipped(values, bits) for bits in widths}
    )


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
