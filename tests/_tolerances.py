"""Tolerances, relative to the largest entry, each with where it comes from."""

import numpy as np

# float64 reference numbers: two independent implementations agree to 1e-13; the rest is headroom.
X64 = 1e-9
# float32 elementwise formulas of a few operations, each within half a unit in the last place.
ELEMENTWISE = 1e-6
# float32 sums of up to a few thousand terms in another order.
CONTRACTION = 1e-5


def relative_error(actual, expected):
    """Largest difference relative to the largest expected entry."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    scale = np.max(np.abs(expected), initial=0.0)
    return np.max(np.abs(actual - expected), initial=0.0) / (scale if scale > 0 else 1.0)
