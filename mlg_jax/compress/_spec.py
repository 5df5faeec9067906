"""The candidate kernels for the layers of a network that is compressed."""

import dataclasses

from mlg_jax._checks import check_instance, check_integer, check_real
from mlg_jax._types import KernelShape
from mlg_jax.kernels import CandidateGrid
from mlg_jax.quant import QuantSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllocationSpec:
    """The candidates for each layer, and the effort spent on measuring them.

    Args:
        base_in: choices of Bi; 0 leaves level 1 out.
        base_out: choices of Bo as shares in (0, 1] of `min(Co, Ci K)`; leaving level 2 out is
            always a choice.
        bits: choices of each factor's width, 2 to 16; all triples are tried.
        weight_bits: width of the classifier and of kernels left ordinary; None stores 32 bits.
        num_measured: number of generated kernels per layer whose divergence is measured, >= 2; for
            the others it is interpolated by squared error.
        num_images: number of calibration images for the measurements, >= 1.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
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

    @property
    def grid(self) -> CandidateGrid:
        """The candidates for every kernel."""
        return CandidateGrid(self.base_in, self.base_out, self.bits)

    def smallest_bits(self, shape: KernelShape) -> int:
        """The size in bits of the smallest candidate for a kernel of this shape."""
        ordinary = shape.size * QuantSpec(self.weight_bits).stored_bits
        return min(ordinary, self.grid.smallest_bits(shape) or ordinary)
