"""Bytes of a tensor in dense and sparse storage formats, as a function of its density."""

from collections.abc import Sequence

import numpy as np

from mlg_jax._checks import check_choice, check_integer, check_real

# Bits besides the values: (per entry, per non-zero entry). COO stores the flat index of each value
# in 64 bits (as PyTorch does), in 32 bits, or in the ceil(log2 N) bits that N entries need.
_FIXED_OVERHEAD = {
    "dense": (0, 0),
    "bitmap": (1, 0),
    "coo_int64": (0, 64),
    "coo_int32": (0, 32),
}
STORAGES = (*_FIXED_OVERHEAD, "coo_packed")


def storage_bytes(
    storage: str, num_elements: int, num_nonzeros: int, *, value_bits: int = 32
) -> int:
    """Bytes of a tensor of N entries, z of them non-zero, with v bits per value.

    ==============  ==============================
    `dense`         `N v / 8`
    `bitmap`        `N / 8 + z v / 8`
    `coo_int64`     `z (64 + v) / 8`
    `coo_int32`     `z (32 + v) / 8`
    `coo_packed`    `z (ceil(log2 N) + v) / 8`
    ==============  ==============================

    Indices, bitmap and values are each rounded up to whole bytes. For a bitmap with unused
    capacity (see `mlg_jax.pack`), z is the capacity.

    Args:
        storage: one of `STORAGES`.
        num_elements: N, 0 or more.
        num_nonzeros: z, 0 to N.
        value_bits: v, 1 to 64.

    Returns:
        The number of bytes.

    Raises:
        TypeError, ValueError: an argument is not as described above.

    Examples:
        >>> from mlg_jax.memory import storage_bytes
        >>> storage_bytes("dense", 1024, 512), storage_bytes("bitmap", 1024, 512)
        (4096, 2176)

    Reference: https://arxiv.org/abs/2110.15362, section 4.
    """
    check_integer("num_elements", num_elements, 0)
    check_integer("num_nonzeros", num_nonzeros, 0, num_elements)
    per_element, per_nonzero = _overhead(storage, num_elements)
    check_integer("value_bits", value_bits, 1, 64)
    num_values = num_elements if storage == "dense" else num_nonzeros
    return (
        _whole_bytes(num_elements * per_element)
        + _whole_bytes(num_nonzeros * per_nonzero)
        + _whole_bytes(num_values * value_bits)
    )


def storage_curve(
    storage: str, num_elements: int, densities: Sequence[float], *, value_bits: int = 32
) -> np.ndarray:
    """Bytes as a linear function of the density: `storage_bytes` without rounding.

    Args:
        storage: one of `STORAGES`.
        num_elements: N, 1 or more.
        densities: shares of non-zero entries, each in [0, 1].
        value_bits: bits per value, 1 to 64.

    Returns:
        Bytes at each density, float64 `[len(densities)]`.

    Raises:
        TypeError, ValueError: an argument is not as described above.
    """
    intercept, slope = _line(storage, num_elements, value_bits)
    for density in densities:
        check_real("densities", density, 0.0, 1.0)
    return intercept + slope * np.asarray(densities, np.float64)


def crossover_density(
    storage: str, other: str, num_elements: int, *, value_bits: int = 32
) -> float | None:
    """The density at which two storage formats take the same number of bytes, in closed form.

    Both curves are lines `a + b d`, so `d = (a2 - a1) / (b1 - b2)`. With fp32 values, a bitmap
    equals the dense tensor at density 31/32 and `coo_int32` at 1/32; `coo_int32` equals the dense
    tensor at 1/2.

    Args:
        storage: one of `STORAGES`.
        other: one of `STORAGES`.
        num_elements: N, 1 or more; only `coo_packed` depends on it.
        value_bits: bits per value, 1 to 64.

    Returns:
        The density, or None if the lines are parallel or meet outside [0, 1].

    Raises:
        TypeError, ValueError: an argument is not as described above.

    Examples:
        >>> from mlg_jax.memory import crossover_density
        >>> crossover_density("bitmap", "dense", 1024)
        0.96875
    """
    intercept, slope = _line(storage, num_elements, value_bits)
    other_intercept, other_slope = _line(other, num_elements, value_bits)
    if slope == other_slope:
        return None
    density = (other_intercept - intercept) / (slope - other_slope)
    return density if 0.0 <= density <= 1.0 else None


def _line(storage: str, num_elements: int, value_bits: int) -> tuple[float, float]:
    """Intercept and slope of the bytes as a function of density."""
    check_integer("num_elements", num_elements, 1)
    per_element, per_nonzero = _overhead(storage, num_elements)
    check_integer("value_bits", value_bits, 1, 64)
    if storage == "dense":
        return num_elements * value_bits / 8, 0.0
    return num_elements * per_element / 8, num_elements * (per_nonzero + value_bits) / 8


def _overhead(storage: str, num_elements: int) -> tuple[int, int]:
    check_choice("storage", storage, STORAGES)
    if storage == "coo_packed":
        return 0, max(num_elements - 1, 0).bit_length()  # ceil(log2 N) in exact arithmetic
    return _FIXED_OVERHEAD[storage]


def _whole_bytes(bits: int) -> int:
    return -(-bits // 8)
