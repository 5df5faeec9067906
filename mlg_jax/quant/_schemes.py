"""The weight schemes as a table: re-parametrise, round on a unit grid, map back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlg_jax._types import Array
from mlg_jax.quant._spec import QuantSpec
from mlg_jax.quant._ste import pinned, round_ewgs, round_ste, sign_ste, true_divide


class Scheme(NamedTuple):
    """`fake_quantize(x) = to_value(round_unit(to_unit(x, *c)), *c)` with `c = constants(x)`."""

    constants: Callable[[Array], tuple[Array, ...]]  # per tensor; constants to autodiff
    to_unit: Callable[..., Array]  # x -> unit scale [0, 1] (sign grids: any real)
    round_unit: Callable[[Array, int], Array]  # straight-through rounding on the unit scale
    to_value: Callable[..., Array]  # unit scale -> value
    from_value: Callable[..., Array]  # unrounded value -> x


def _nonzero(r: Array) -> Array:
    """`r`, or 1 where it is zero (for a constant tensor), as a divisor."""
    return jnp.where(r == 0.0, 1.0, r)


def _max_tanh(x: Array) -> tuple[Array, ...]:
    return (jnp.max(jnp.abs(jnp.tanh(x)), initial=0.0),)


def _min_max(x: Array) -> tuple[Array, ...]:
    return (jnp.min(x), jnp.max(x))


def _mean_abs(x: Array) -> tuple[Array, ...]:
    return (jnp.mean(jnp.abs(x)),)


def _half_tanh_unit(x: Array, r: Array) -> Array:
    return true_divide(jnp.tanh(x), 2.0 * _nonzero(r)) + 0.5


def _sign_unit(x: Array, scale: Array) -> Array:
    return true_divide(x, _nonzero(scale))


def _sign_round(u: Array, bits: int) -> Array:
    del bits  # always 1
    return sign_ste(u)


def _atanh(t: Array) -> Array:
    # Clipped because arctanh is infinite at +-1.
    return jnp.arctanh(jnp.clip(t, -0.999, 0.999))


def _same(y: Array, *constants: Array) -> Array:
    return y


# `r * (2 q - 1)` rather than `q * 2r - r`: the product and the difference in the brackets are
# exact, so the value does not depend on whether a compiler contracts them, and decoding is
# bit-exact.
_SCHEMES = {
    "dorefa_sym": Scheme(
        constants=_max_tanh,
        to_unit=_half_tanh_unit,
        round_unit=round_ste,
        to_value=lambda q, r: r * (2.0 * q - 1.0),
        from_value=_atanh,
    ),
    "dorefa": Scheme(_max_tanh, _half_tanh_unit, round_ste, _same, lambda y: _atanh(2.0 * y - 1.0)),
    "dorefa_pos": Scheme(
        constants=_max_tanh,
        to_unit=lambda x, r: true_divide(jnp.tanh(x) + r, 2.0 * _nonzero(r)),
        round_unit=round_ste,
        to_value=lambda q, r: q * (2.0 * r),
        from_value=lambda y: _atanh(y - jnp.max(y) / 2.0),
    ),
    "qnn": Scheme(
        constants=_min_max,
        to_unit=lambda x, low, high: true_divide(x - low, _nonzero(high - low)),
        round_unit=round_ste,
        to_value=lambda q, low, high: pinned(q * (high - low)) + low,
        from_value=_same,
    ),
    "ewgs": Scheme(_max_tanh, _half_tanh_unit, round_ewgs, _same, lambda y: _atanh(2.0 * y - 1.0)),
}
_SIGN_SCHEMES = {
    "dorefa_sym": Scheme(_mean_abs, _sign_unit, _sign_round, lambda q, e: q * e, _same),
    "dorefa": Scheme(
        _mean_abs, _sign_unit, _sign_round, lambda q, e: (q * e + e) / 2.0, lambda y: 2.0 * y
    ),
}


def scheme_of(spec: QuantSpec) -> Scheme:
    """The row of the table for a spec whose `bits` is not None."""
    if spec.bits == 1 and spec.scheme in _SIGN_SCHEMES:
        return _SIGN_SCHEMES[spec.scheme]
    return _SCHEMES[spec.scheme]


def is_sign_grid(spec: QuantSpec) -> bool:
    """Whether the grid is {-1, 0, 1} rather than {0, 1/n, ..., 1}."""
    return spec.bits == 1 and spec.scheme in _SIGN_SCHEMES


def constants_of(scheme: Scheme, x: Array) -> tuple[Array, ...]:
    """The scheme's per-tensor constants, with gradients stopped."""
    return jax.tree.map(jax.lax.stop_gradient, scheme.constants(x))


def tanh_norm(x: Array) -> Array:
    """`tanh(x) / max |tanh(x)|`; the maximum is differentiated, too."""
    t = jnp.tanh(x)
    return t / _nonzero(jnp.max(jnp.abs(t), initial=0.0))


def wide(x: Any) -> Array:
    """`x` in float32 or wider: bfloat16 cannot represent a 16-bit grid."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def is_scaled_by_maximum(spec: QuantSpec) -> bool:
    """Whether the quantiser's only constant is the tensor's largest `|tanh(x)|`."""
    return spec.bits is not None and scheme_of(spec).constants is _max_tanh


def quantize_tiles(
    tiles: Array, owners: np.ndarray, spec: QuantSpec, is_rounded: Array | None = None
) -> Array:
    """`fake_quantize` of tensors that consist of whole rows of `tiles`.

    Args:
        tiles: `[T, n]`, filled up with zeros, float32 or wider.
        owners: the number of the tensor that each row belongs to, `[T]`, on the host.
        spec: a quantiser for which `is_scaled_by_maximum` holds.
        is_rounded: `[T, n]`, the entries that are rounded; None rounds all.
    """
    scheme = scheme_of(spec)
    of_tile = jnp.max(jnp.abs(jnp.tanh(jax.lax.stop_gradient(tiles))), axis=1)
    is_own = owners == np.arange(owners[-1] + 1)[:, None]
    of_tensor = jnp.max(jnp.where(is_own, of_tile, 0.0), axis=1)
    scale = of_tensor[owners][:, None]
    unit = scheme.to_unit(tiles, scale)
    value = scheme.to_value(scheme.round_unit(unit, spec.stored_bits), scale)
    if is_rounded is None:
        return value
    return jnp.where(is_rounded, value, scheme.to_value(unit, scale))
