"""Fake quantisation: floating-point values on a grid, with a straight-through gradient."""

import jax
import jax.numpy as jnp

from mlg_jax._checks import check_floating, check_instance
from mlg_jax._types import Array, Float, Key
from mlg_jax.quant._schemes import constants_of, scheme_of, tanh_norm, wide
from mlg_jax.quant._spec import QuantSpec


def fake_quantize(
    x: Float[Array, "*shape"], spec: QuantSpec, *, key: Key | None = None
) -> Float[Array, "*shape"]:
    """Fake-quantises a weight tensor with a straight-through gradient.

    Forward, for `dorefa_sym`: `r (2 Q(tanh(x) / 2r + 1/2) - 1)`, where `Q` rounds [0, 1] to
    `2**bits - 1` steps and `r = max |tanh(x)|` over the tensor is a constant to autodiff. For the
    other schemes see `QuantSpec`.
    Backward: that of the re-parametrisation, with the cotangent that reaches `Q` clamped to
    [-1, 1] (`ewgs`: scaled element-wise instead).

    Args:
        x: floating-point array of any shape. It is computed in float32 or wider.
        spec: the quantiser; without `bits`, `x` is returned (by `tanh_norm`, which has none, its
            normalised tanh).
        key: selects at random the share `spec.ratio` of entries that is rounded; None rounds all.

    Returns:
        An array of `x`'s shape and dtype.

    Raises:
        TypeError: `x` is not a floating-point array, or `spec` is not a QuantSpec.

    Examples:
        >>> fake_quantize(jnp.array([-0.5, 0.1, 0.4]), QuantSpec(bits=2))
        Array([-0.46211717,  0.15403907,  0.46211717], dtype=float32)

    Reference: https://arxiv.org/abs/2108.11430, https://arxiv.org/abs/1606.06160.
    """
    check_floating("x", x)
    check_instance("spec", spec, QuantSpec)
    if spec.scheme == "tanh_norm":
        return tanh_norm(wide(x)).astype(x.dtype)
    if spec.bits is None or jnp.size(x) == 0:
        return jnp.asarray(x)
    scheme = scheme_of(spec)
    wide_x = wide(x)
    constants = constants_of(scheme, wide_x)
    unit = scheme.to_unit(wide_x, *constants)
    value = scheme.to_value(scheme.round_unit(unit, spec.bits), *constants)
    if key is not None and spec.ratio < 1.0:
        value = _mix_at_random(key, spec.ratio, value, scheme.to_value(unit, *constants))
    return value.astype(jnp.result_type(x))


def unquantize(value: Float[Array, "*shape"], spec: QuantSpec) -> Float[Array, "*shape"]:
    """Inverts the re-parametrisation: a parameter tensor that quantises to about `value`.

    It is the starting point for training from given weights. The tanh schemes use `arctanh` with
    its argument clipped to +-0.999; the schemes with values in [0, 1] are inverted up to the
    tensor's scale.

    Args:
        value: the wanted unrounded values, any shape.
        spec: the quantiser.

    Returns:
        An array of the same shape and dtype.
    """
    if spec.bits is None or spec.scheme == "tanh_norm":
        return value
    return scheme_of(spec).from_value(value)


def _mix_at_random(
    key: Key,
    ratio: float,
    rounded: Float[Array, "*shape"],
    exact: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """Partial quantisation: each entry is from `rounded` with probability `ratio`.

    The other entries are from `exact`. Gradients follow this choice: straight-through for rounded
    entries, that of the re-parametrisation for the others.

    Reference: Fan et al., https://arxiv.org/abs/2004.07320.
    """
    is_rounded = jax.random.bernoulli(key, ratio, rounded.shape)
    return jnp.where(is_rounded, rounded, exact)
