"""Which factors a kernel is generated from: the requested bases, resolved for one layer's shape."""

import dataclasses
from typing import NamedTuple

from mlg_jax._checks import check_choice, check_instance, check_integer
from mlg_jax._types import KernelShape
from mlg_jax.quant import QuantSpec

INITS = ("fan_out", "variance")


class FactorShapes(NamedTuple):
    """Shapes of the factors of one kernel; None where that level does not exist."""

    basis: tuple[int, int, int]  # [Bo, Bi, K], without level 1 [Bo, Ci, K]
    coeff_in: tuple[int, int, int] | None  # [Bo, Ci, Bi]
    coeff_out: tuple[int, int] | None  # [Co, Bo]


@dataclasses.dataclass(frozen=True)
class GenerationSpec:
    """How the kernels of a network are generated: `W = V (U B)`.

    Args:
        base_in: Bi, basis kernels within one base; 0 leaves level 1 out.
        base_out: Bo, bases across kernels; 0 leaves level 2 out.
        basis, coeff_in, coeff_out: quantisers of B, U and V.
        init: `fan_out` gives every factor He's deviation over its own fan-out, as published;
            `variance` scales the three alike so that the *product* has He's variance.

    Raises:
        TypeError, ValueError: an argument of another type or out of range.

    Example:
        >>> paper = GenerationSpec.from_bits(2, 44, 3, 6, 3)  # written "2-44-3-6-3"

    Reference: https://arxiv.org/abs/2108.11430.
    """

    base_in: int
    base_out: int
    basis: QuantSpec = QuantSpec()
    coeff_in: QuantSpec = QuantSpec()
    coeff_out: QuantSpec = QuantSpec()
    init: str = "fan_out"

    def __post_init__(self) -> None:
        check_integer("base_in", self.base_in, 0)
        check_integer("base_out", self.base_out, 0)
        for name in ("basis", "coeff_in", "coeff_out"):
            check_instance(name, getattr(self, name), QuantSpec)
        check_choice("init", self.init, INITS)

    @classmethod
    def from_bits(
        cls,
        base_in: int,
        base_out: int,
        basis_bits: int | None = None,
        coeff_in_bits: int | None = None,
        coeff_out_bits: int | None = None,
    ) -> "GenerationSpec":
        """The spec written "Bi-Bo-qb-qu-qv" in the paper, with the default scheme."""
        basis, coeff_in, coeff_out = map(QuantSpec, (basis_bits, coeff_in_bits, coeff_out_bits))
        return cls(base_in, base_out, basis, coeff_in, coeff_out)

    def resolve(self, kernel: KernelShape) -> FactorShapes | None:
        """The factors of one kernel; None where neither level applies (an ordinary kernel).

        Level 2 exists where `Bo < min(Co, Ci K)`, level 1 where `0 < Bi < min(Ci, K)`.
        A 1 x 1 kernel with a larger requested Bo takes `int(0.9 min(Co, Ci))`.
        """
        num_bases = self._num_bases(kernel)
        has_level_1 = 0 < self.base_in < min(kernel.in_channels, kernel.taps)
        has_level_2 = num_bases < min(kernel.out_channels, kernel.in_channels * kernel.taps)
        if not (has_level_1 or has_level_2):
            return None
        rows = self.base_in if has_level_1 else kernel.in_channels
        return FactorShapes(
            basis=(num_bases, rows, kernel.taps),
            coeff_in=(num_bases, kernel.in_channels, self.base_in) if has_level_1 else None,
            coeff_out=(kernel.out_channels, num_bases) if has_level_2 else None,
        )

    def _num_bases(self, kernel: KernelShape) -> int:
        smaller = min(kernel.out_channels, kernel.in_channels)
        if kernel.taps == 1 and self.base_out >= smaller and smaller > 1:
            return int(0.9 * smaller)
        rank = min(kernel.out_channels, kernel.in_channels * kernel.taps)
        return self.base_out if 0 < self.base_out < rank else kernel.out_channels
