"""A generated layer's product by the name of its implementation."""

from collections.abc import Mapping
from typing import Any

from mlg_jax._checks import check_choice
from mlg_jax._types import Array, LayerRecord
from mlg_jax.generation._apply import apply_built, convolve_as, to_layout
from mlg_jax.generation._factored import apply_factored, apply_factored_out
from mlg_jax.generation._generate import generate_kernel


def apply_generated(
    implementation: str, factors: Mapping[str, Any], x: Array, record: LayerRecord
) -> Array:
    """The product of x with the generated kernel; every implementation is the same function.

    Args:
        implementation: `generate`, `factored_out` or `factored`.
        factors: `basis`, and where they exist `coeff_in`, `coeff_out`, quantised.
        x: `[N, H, W, C]`, or `[..., C]` for a dense layer.
        record: the layer's kernel, strides, padding, dilation and groups.

    Returns:
        y, in the dtype of x. Residuals: x and the factors.

    Raises:
        ValueError: no such implementation.
    """
    check_choice("implementation", implementation, _IMPLEMENTATIONS)
    return _IMPLEMENTATIONS[implementation](factors, x, record)


def _apply_generate(factors: Mapping[str, Any], x: Array, record: LayerRecord) -> Array:
    """`y = W * x`, `W = V (U B)`: `Ci Co k^2` multiply-adds a position, and building W once."""

    def build(factors: Mapping[str, Any]) -> Array:
        assert record.kernel is not None
        kernel = generate_kernel(
            factors["basis"], factors.get("coeff_in"), factors.get("coeff_out")
        )
        return to_layout(kernel, record.kernel)

    return apply_built(lambda x, kernel: convolve_as(record, x, kernel), build, factors, x)


_IMPLEMENTATIONS = {
    "generate": _apply_generate,
    "factored_out": apply_factored_out,
    "factored": apply_factored,
}
