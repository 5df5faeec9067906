"""Where a grid should end: the clipping that rounds a tensor with the least squared error."""

import numpy as np

from mlg_jax.quant._spec import QuantSpec

REPRESENTABLE = 0.95  # the tanh schemes hold |value| < 1; tensors are scaled to stay below this
TANH_SCHEMES = ("dorefa_sym", "dorefa", "dorefa_pos", "ewgs")

# Shares of a tensor's largest entry at which its grid may end. At 2 bits the best grid of a normal
# tensor ends near 1.5 deviations; one that ends at the largest entry has an error larger than 1.
_CLIPS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)


def clip_to_grid(values: np.ndarray, quant: QuantSpec) -> np.ndarray:
    """The values clipped to the end of the best grid; unchanged where the grid's end is fixed.

    Args:
        values: floating, on the host.
        quant: the quantiser; its grid ends at the largest value under `dorefa_sym` with at least 2
            bits, the only one that is clipped for.
    """
    if quant.bits is None or quant.bits < 2 or quant.scheme != "dorefa_sym":
        return values
    end = _grid_end(values, quant.bits)
    return np.clip(values, -end, end)


def round_clipped(values: np.ndarray, bits: int) -> np.ndarray:
    """What `dorefa_sym` makes of parameters whose values are `clip_to_grid(values)`."""
    return _on_grid(values, _grid_end(values, bits), bits)


def _grid_end(values: np.ndarray, bits: int) -> float:
    """Where the grid ends: clipped there, the values have the least squared rounding error."""
    peak = float(np.max(np.abs(values)))
    ends = [min(clip * peak, REPRESENTABLE) for clip in _CLIPS]
    errors = [float(np.sum((_on_grid(values, end, bits) - values) ** 2)) for end in ends]
    return ends[int(np.argmin(errors))]


def _on_grid(values: np.ndarray, end: float, bits: int) -> np.ndarray:
    """`dorefa_sym` on values instead of parameters: no tanh, the grid ends at +-`end`."""
    steps = 2**bits - 1
    scale = 2.0 * end if end else 1.0
    unit = np.clip(values, -end, end) / scale + 0.5
    return end * (2.0 * (np.round(unit * steps) / steps) - 1.0)
