"""Shapes of the factors that a kernel is generated from."""

from typing import NamedTuple

from mlg_jax._types import KernelShape


class FactorShapes(NamedTuple):
    """Shapes of the factors of one kernel; None for a level that does not exist."""

    basis: tuple[int, int, int]  # [Bo, Bi, K]; without level 1 [Bo, Ci, K]
    coeff_in: tuple[int, int, int] | None  # [Bo, Ci, Bi]
    coeff_out: tuple[int, int] | None  # [Co, Bo]


def factor_shapes(base_in: int, base_out: int, kernel: KernelShape) -> FactorShapes | None:
    """The shapes of one kernel's factors; None if neither level applies (an ordinary kernel).

    Level 2 exists if `0 < Bo < min(Co, Ci K)`, level 1 if `0 < Bi < min(Ci, K)`. A 1 x 1 kernel
    with `Bo >= min(Co, Ci) > 1` takes `Bo = int(0.9 min(Co, Ci))` instead.
    """
    num_bases = _num_bases(base_out, kernel)
    has_level_1 = 0 < base_in < min(kernel.in_channels, kernel.taps)
    has_level_2 = num_bases < min(kernel.out_channels, kernel.in_channels * kernel.taps)
    if not (has_level_1 or has_level_2):
        return None
    rows = base_in if has_level_1 else kernel.in_channels
    return FactorShapes(
        basis=(num_bases, rows, kernel.taps),
        coeff_in=(num_bases, kernel.in_channels, base_in) if has_level_1 else None,
        coeff_out=(kernel.out_channels, num_bases) if has_level_2 else None,
    )


def _num_bases(base_out: int, kernel: KernelShape) -> int:
    smaller = min(kernel.out_channels, kernel.in_channels)
    if kernel.taps == 1 and base_out >= smaller and smaller > 1:
        return int(0.9 * smaller)
    rank = min(kernel.out_channels, kernel.in_channels * kernel.taps)
    return base_out if 0 < base_out < rank else kernel.out_channels
