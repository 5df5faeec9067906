"""Fake quantisation: floating-point values on an integer grid, trainable straight-through."""

import jax.numpy as jnp

from mlg_jax._checks import check_floating, check_instance
from mlg_jax._types import Array, Float, Key
from mlg_jax.quant._partial import mix_at_random
from mlg_jax.quant._schemes import constants_of, scheme_of, tanh_norm, wide
from mlg_jax.quant._spec import QuantSpec


def fake_quantize(
    x: Float[Array, "*shape"], spec: QuantSpec, *, key: Key | None = None
) -> Float[Array, "*shape"]:
    """Quantises a weight tensor as `spec` says, straight-through.

    Forward, `dorefa_sym`: `r (2 Q(tanh(x) / 2r + 1/2) - 1)`, `Q` rounding to `2**bits - 1` steps,
    `r = max |tanh(x)|` over the tensor and a constant to autodiff; the others by analogy.
    Backward: through the re-parametrisation, the cotangent that reaches `Q` clamped to [-1, 1].

    Args:
        x: floating, any shape. Computed in float32 at least, returned in its own dtype.
        spec: the quantiser.
        key: with `spec.ratio < 1`, decides which entries are rounded; without a key all are.

    Returns:
        An array of `x`'s shape and dtype.

    Raises:
        TypeError: `x` is not floating or `spec` is no QuantSpec.

    Example:
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
        value = mix_at_random(key, spec.ratio, value, scheme.to_value(unit, *constants))
    return value.astype(jnp.result_type(x))


def unquantize(value: Float[Array, "*shape"], spec: QuantSpec) -> Float[Array, "*shape"]:
    """A parameter whose unrounded, re-parametrised value is `value`: where to start training from.

    The inverse of the re-parametrisation (`arctanh` for the tanh schemes, clipped to +-0.999),
    up to the tensor's own scale for the schemes with values in [0, 1].
    """
    if spec.bits is None or spec.scheme == "tanh_norm":
        return value
    return scheme_of(spec).from_value(value)
