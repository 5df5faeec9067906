"""Implementations that apply the factors one after another and never build the kernel."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mlg_jax._convolution import convolve_as, strided
from mlg_jax._ordering import materialize
from mlg_jax._platform import PORTABLE, traced_platform
from mlg_jax._types import Array, Float, LayerGeometry
from mlg_jax.generation._generate import combine_within, pad_bases
from mlg_jax.generation._implementation import Implementation, dispatch_by_platform
from mlg_jax.generation._shifts import (
    shifted_products,
    shifted_sum,
    shifted_sum_transposed,
    window_of,
)

Factors = Mapping[str, Any]  # arrays by name, or their stand-ins under a transformation
Prepared = dict[str, Any]

# Upper bound of the largest temporary of one part of a batch: a few of them fit a CPU's cache.
PART_BYTES = 2**21


def apply_factored(factors: Factors, x: Array, layer: LayerGeometry) -> Array:
    """`y = V (B * (U x))`: 1 x 1 by U to Bo Bi channels, k x k within each base, 1 x 1 by V.

    Multiply-adds per position: `Ci Bo Bi + Bo Bi k^2 + Bo Co`; the k x k part applies the strides.
    Without level 1 it equals `apply_factored_out`; without level 2 the last product is omitted.
    Residuals: x and the factors.

    Args:
        factors: the quantised `basis` and, if they exist, `coeff_in` and `coeff_out`.
        x: `[N, H, W, C]`, or `[..., C]` for a dense layer.
        layer: the layer's kernel, strides, padding, dilation and groups.

    Returns:
        y, in the dtype of x.
    """
    if "coeff_in" not in factors:
        return apply_factored_out(factors, x, layer)
    num_bases, in_channels, base_in = factors["coeff_in"].shape
    sample = math.prod(x.shape[1:]) // in_channels * num_bases * base_in
    prepare = functools.partial(_prepare_levels, layer=layer)
    backward = None if layer.groups > 1 else functools.partial(_backward_by_shifts, layer=layer)
    cpu = Implementation(
        prepare,
        functools.partial(_forward_by_shifts, layer=layer),
        backward,
        _num_parts(x.shape[0], sample),
    )
    if layer.groups == 1 and traced_platform() != PORTABLE:
        default = Implementation(
            functools.partial(_prepare_diagonal, layer=layer, dtype=x.dtype),
            functools.partial(_forward_by_diagonal, layer=layer),
        )
    else:
        default = Implementation(prepare, functools.partial(_forward_by_groups, layer=layer))
    return dispatch_by_platform(factors, x, cpu=cpu, default=default)


def apply_factored_out(factors: Factors, x: Array, layer: LayerGeometry) -> Array:
    """`y = V (W1 * x)`, `W1 = U B`: a convolution with Bo outputs, then 1 x 1 by V.

    Multiply-adds per position: `Ci Bo k^2 + Bo Co`. Without level 2 it is the convolution with W.

    Arguments, result and residuals are those of `apply_factored`.
    """
    if layer.kernel_shape.taps == 1 and layer.groups == 1 and "coeff_out" in factors:
        forward = functools.partial(_pointwise, layer=layer)
        backward = functools.partial(_pointwise_backward, layer=layer)
        passes = Implementation(_prepare_pointwise, forward, backward)
        return dispatch_by_platform(factors, x, cpu=passes, default=passes)
    passes = Implementation(
        functools.partial(_prepare_rows, layer=layer, dtype=x.dtype),
        functools.partial(_forward_by_rows, layer=layer),
    )
    return dispatch_by_platform(factors, x, cpu=passes, default=passes)


def _prepare_levels(factors: Factors, layer: LayerGeometry) -> Prepared:
    """Returns `within` [Bi Bo, Ci], `basis` [K, Bi, Bo] and `across` [Bo, Co].

    Without level 2, each of G > 1 groups has its own bases: `within` [G, Bi Bo/G, Ci], `basis`
    [K, Bi, G, Bo/G].
    """
    coeff_in, basis = factors["coeff_in"], factors["basis"]
    num_bases, base_in, _ = basis.shape
    within = jnp.transpose(coeff_in, (2, 0, 1))
    basis = jnp.transpose(basis, (2, 1, 0))
    if "coeff_out" in factors or layer.groups == 1:
        within = within.reshape(base_in * num_bases, -1)
    else:
        within = within.reshape(base_in, layer.groups, num_bases // layer.groups, -1)
        within = jnp.moveaxis(within, 0, 1).reshape(layer.groups, -1, within.shape[-1])
        basis = basis.reshape(-1, base_in, layer.groups, num_bases // layer.groups)
    across = {"across": factors["coeff_out"].T} if "coeff_out" in factors else {}
    return {"within": within, "basis": basis} | across


def _forward_by_shifts(prepared: Prepared, x: Array, layer: LayerGeometry) -> Array:
    prepared, dtype = _in_float32(prepared), x.dtype
    x = x.astype(prepared["basis"].dtype)
    t = _bases_last(_down_by_group(x, prepared["within"], layer), prepared)
    z = shifted_sum(t, prepared["basis"], layer)
    return _across(z, prepared, layer).astype(dtype)


def _backward_by_shifts(
    prepared: Prepared, x: Array, cotangent: Array, layer: LayerGeometry
) -> tuple[Prepared, Array]:
    """Written by hand, so that each intermediate exists once, in the layout of the next product."""
    dtypes = {name: value.dtype for name, value in prepared.items()}
    prepared, dtype = _in_float32(prepared), x.dtype
    within, basis = prepared["within"], prepared["basis"]
    x, cotangent = x.astype(basis.dtype), cotangent.astype(basis.dtype)
    t = _bases_last(_down(x, within), prepared)
    gradients, d_z = {}, cotangent
    if "across" in prepared:
        z = materialize(shifted_sum(t, basis, layer))
        gradients["across"] = _outer(z, cotangent)
        d_z = _down(cotangent, prepared["across"])
    gradients["basis"] = shifted_products(t, d_z, layer)
    d_t = shifted_sum_transposed(d_z, basis, x.shape[1:3], layer)
    d_t = materialize(d_t.reshape(*x.shape[:-1], -1))
    gradients["within"] = _outer(d_t, x)
    d_x = _up(d_t, within).astype(dtype)
    return {name: value.astype(dtypes[name]) for name, value in gradients.items()}, d_x


def _prepare_diagonal(factors: Factors, layer: LayerGeometry, dtype: Any) -> Prepared:
    """As `_prepare_levels`, with the bases as the block diagonal of `within_bases`.

    That is a kernel `[height, width, Bi Bo, Bo]`, in Flax's layout, which is zero where the input
    channel belongs to another base.
    """
    prepared = _prepare_levels(pad_bases(factors, dtype), layer)
    basis = prepared.pop("basis")
    num_bases = basis.shape[-1]
    diagonal = basis[..., None] * jnp.eye(num_bases, dtype=basis.dtype)
    kernel = diagonal.reshape(*window_of(layer), -1, num_bases)
    return prepared | {"within_bases": kernel}


def _forward_by_diagonal(prepared: Prepared, x: Array, layer: LayerGeometry) -> Array:
    """The k x k part as an ordinary convolution, most of whose kernel is zero.

    GPUs take longer for grouped convolutions with few channels per group, although these have only
    a fraction of the arithmetic.
    """
    prepared = {name: value.astype(x.dtype) for name, value in prepared.items()}
    z = convolve_as(layer, _down(x, prepared["within"]), prepared["within_bases"])
    return _across(z, prepared, layer)


def _forward_by_groups(prepared: Prepared, x: Array, layer: LayerGeometry) -> Array:
    """The k x k part as a grouped convolution with Bi input channels per group."""
    prepared = {name: value.astype(x.dtype) for name, value in prepared.items()}
    base_in, num_bases = prepared["basis"].shape[1], math.prod(prepared["basis"].shape[2:])
    within = prepared["within"]
    inner = within.reshape(*within.shape[:-2], base_in, -1, within.shape[-1])
    within = jnp.swapaxes(inner, -3, -2).reshape(within.shape)
    t = _down_by_group(x, within, layer).reshape(*x.shape[:3], -1)
    num_groups = t.shape[-1] // base_in
    kernel = prepared["basis"].reshape(*window_of(layer), base_in, num_bases)
    kernel = jnp.tile(kernel, num_groups // num_bases)
    z = convolve_as(layer, t, kernel, groups=num_groups)
    return _across(_by_group(z, layer) if "across" in prepared else z, prepared, layer)


def _prepare_rows(factors: Factors, layer: LayerGeometry, dtype: Any) -> Prepared:
    """Returns `rows`, W1 in Flax's layout and repeated for each group, and `across` [Bo, Co]."""
    factors = pad_bases(factors, dtype)
    rows = combine_within(factors["basis"], factors.get("coeff_in"))
    shape = layer.kernel_shape.layout[:-1]
    rows = jnp.transpose(rows, (1, 2, 0)).reshape(*shape, -1)
    if "coeff_out" not in factors:
        return {"rows": rows}
    return {"rows": jnp.tile(rows, layer.groups), "across": factors["coeff_out"].T}


def _forward_by_rows(prepared: Prepared, x: Array, layer: LayerGeometry) -> Array:
    prepared = {name: value.astype(x.dtype) for name, value in prepared.items()}
    z = convolve_as(layer, x, prepared["rows"], groups=layer.groups)
    return _across(_by_group(z, layer) if "across" in prepared else z, prepared, layer)


def _prepare_pointwise(factors: Factors) -> Prepared:
    """Returns `within` [Bo, Ci] and `across` [Bo, Co]."""
    return {"within": factors["basis"][..., 0], "across": factors["coeff_out"].T}


def _pointwise(prepared: Prepared, x: Array, layer: LayerGeometry) -> Array:
    prepared = {name: value.astype(x.dtype) for name, value in prepared.items()}
    return _up(_down(_seen(x, layer), prepared["within"]), prepared["across"])


def _pointwise_backward(
    prepared: Prepared, x: Array, cotangent: Array, layer: LayerGeometry
) -> tuple[Prepared, Array]:
    dtypes = {name: value.dtype for name, value in prepared.items()}
    within, across = (prepared[name].astype(x.dtype) for name in ("within", "across"))
    seen, pull = jax.vjp(functools.partial(_seen, layer=layer), x)
    d_z = _down(cotangent, across)
    gradients = {"across": _outer(_down(seen, within), cotangent), "within": _outer(d_z, seen)}
    gradients = {name: value.astype(dtypes[name]) for name, value in gradients.items()}
    return gradients, *pull(_up(d_z, within))


def _seen(x: Array, layer: LayerGeometry) -> Array:
    """The entries of x that a strided 1 x 1 kernel reads."""
    if layer.padding:
        config = [(0, 0, 0), *[(*pair, 0) for pair in layer.padding], (0, 0, 0)]
        x = lax.pad(x, jnp.zeros((), x.dtype), config)
        x = strided(x, layer.strides)
        if layer.strides != (1, 1) and traced_platform() != "cpu":
            x = lax.optimization_barrier(x)  # XLA's GPU compiler aborts on products of strided x
    return x


def _across(z: Array, prepared: Prepared, layer: LayerGeometry) -> Array:
    """1 x 1 by V, `[..., G, Bo]` to `[..., Co]`; without level 2, joins the groups' outputs."""
    if "across" in prepared and layer.groups == 1:
        return _up(z.reshape(*z.shape[:3], -1), prepared["across"])
    if "across" in prepared:
        across = prepared["across"].reshape(z.shape[-1], layer.groups, -1)
        z = jnp.einsum("nhwgb,bgo->nhwgo", z, across)
    return z.reshape(*z.shape[:3], -1)


def _down_by_group(x: Array, within: Array, layer: LayerGeometry) -> Array:
    """1 x 1 by U: `[N, H, W, C]` to `[N, H, W, Bi Bo]`, or to `[N, H, W, G, Bi Bo]` by groups."""
    if layer.groups == 1:
        return _down(x, within)
    x = _by_group(x, layer)
    return jnp.einsum("nhwgc,gmc->nhwgm", x, within) if within.ndim == 3 else _down(x, within)


def _by_group(x: Array, layer: LayerGeometry) -> Array:
    return x if layer.groups == 1 else x.reshape(*x.shape[:-1], layer.groups, -1)


def _bases_last(t: Array, prepared: Prepared) -> Array:
    return t.reshape(*t.shape[:-1], prepared["basis"].shape[1], -1)


def _down(x: Float[Array, "*n c"], matrix: Float[Array, "m c"]) -> Float[Array, "*n m"]:
    return lax.dot_general(x, matrix, (((x.ndim - 1,), (1,)), ((), ())))


def _up(x: Float[Array, "*n m"], matrix: Float[Array, "m c"]) -> Float[Array, "*n c"]:
    return lax.dot_general(x, matrix, (((x.ndim - 1,), (0,)), ((), ())))


def _outer(a: Float[Array, "*n m"], b: Float[Array, "*n c"]) -> Float[Array, "m c"]:
    """Sums over positions; XLA:CPU is twice as fast if the narrower operand comes first."""
    axes = tuple(range(a.ndim - 1))
    return lax.dot_general(a, b, ((axes, axes), ((), ())))


def _in_float32(prepared: Prepared) -> Prepared:
    """CPUs compute narrow types in float32 anyway: this avoids rounding in between."""
    return {n: v.astype(jnp.promote_types(v.dtype, jnp.float32)) for n, v in prepared.items()}


def _num_parts(num_samples: Any, sample_size: int) -> int:
    """The smallest number of equal parts whose temporaries take at most `PART_BYTES`.

    It is 1 if the batch size is symbolic, as in an exported program.
    """
    if not isinstance(num_samples, int):
        return 1
    fits = (
        n
        for n in range(1, num_samples + 1)
        if num_samples % n == 0 and 4 * sample_size * num_samples <= n * PART_BYTES
    )
    return next(fits, max(num_samples, 1))
