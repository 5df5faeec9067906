"""What a generated kernel costs: stored entries, bits, and the multiply-adds of building it."""

from mlg_jax._types import FactorRecord, KernelShape
from mlg_jax.generation._spec import FactorShapes, GenerationSpec


def factor_records(spec: GenerationSpec, shapes: FactorShapes) -> tuple[FactorRecord, ...]:
    """The stored arrays of a generated kernel: `|B| qb + |U| qu + |V| qv` bits in all."""
    levels = zip(FactorShapes._fields, shapes, strict=True)
    return tuple(
        FactorRecord(name, shape, getattr(spec, name).bits, getattr(spec, name).scheme)
        for name, shape in levels
        if shape is not None
    )


def generation_multiply_adds(shapes: FactorShapes, kernel: KernelShape) -> int:
    """Multiply-adds of building W once: `Bo Ci Bi K` for level 1, `Co Bo Ci K` for level 2."""
    num_bases, base_in, taps = shapes.basis
    within = num_bases * kernel.in_channels * base_in * taps if shapes.coeff_in else 0
    across = kernel.size * num_bases if shapes.coeff_out else 0
    return within + across
