"""Clips a tensor at the end of the quantisation grid that has the least squared error."""

import numpy as np

from mlg_jax.quant._spec import QuantSpec

# The tanh schemes represent |value| < 1 only; tensors are scaled or clipped to this magnitude.
REPRESENTABLE = 0.95
TANH_SCHEMES = ("dorefa_sym", "dorefa", "dorefa_pos", "ewgs")

# Candidate ends of the grid, as fractions of the tensor's largest magnitude. At 2 bits, the best
# grid for normally distributed entries ends near 1.5 standard deviations; a grid that ends at the
# largest entry has a relative error above 1.
_CLIPS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)


def clip_to_grid(values: np.ndarray, quant: QuantSpec) -> np.ndarray:
    """Clips values to the end of the grid with the least squared rounding error.

    Args:
        values: floating-point array of any shape, on the host.
        quant: the quantiser. Only for `dorefa_sym` with at least 2 bits, whose grid ends at the
            largest value, does clipping change the grid.

    Returns:
        An array of the same shape; `values` itself for all other quantisers.
    """
    if quant.bits is None or quant.bits < 2 or quant.scheme != "dorefa_sym":
        return values
    end = _grid_end(values, quant.bits)
    return np.clip(values, -end, end)


def round_clipped(values: np.ndarray, bits: int) -> np.ndarray:
    """`clip_to_grid(values)` rounded to the grid of `dorefa_sym` with `bits` bits, in any shape."""
    return _on_grid(values, _grid_end(values, bits), bits)


def _grid_end(values: np.ndarray, bits: int) -> float:
    """The candidate end of the grid at which the squared rounding error is smallest."""
    peak = float(np.max(np.abs(values)))
    ends = [min(clip * peak, REPRESENTABLE) for clip in _CLIPS]
    errors = [float(np.sum((_on_grid(values, end, bits) - values) ** 2)) for end in ends]
    return ends[int(np.argmin(errors))]


def _on_grid(values: np.ndarray, end: float, bits: int) -> np.ndarray:
    """`dorefa_sym` on values instead of parameters: without tanh, on a grid from -end to end."""
    steps = 2**bits - 1
    scale = 2.0 * end if end else 1.0
    unit = np.clip(values, -end, end) / scale + 0.5
    return end * (2.0 * (np.round(unit * steps) / steps) - 1.0)
