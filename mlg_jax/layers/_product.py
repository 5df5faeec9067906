"""Parts shared by convolutions and dense layers: checks, quantised input, product, bias, record."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlg_jax._checks import check_choice, check_floating, check_instance, check_integer
from mlg_jax._types import Array, Key, LayerGeometry
from mlg_jax.kernels import (
    Factor,
    Kernel,
    LayerRecord,
    OrdinaryKernel,
    as_spec,
    bind_or_ordinary,
    implementation_names,
    matches_path,
)
from mlg_jax.layers._activation import ActivationQuantizer
from mlg_jax.layers._collections import FACTORS, record_layer
from mlg_jax.quant import ActivationSpec

QUANTIZE_STREAM = "quantize"
INIT = nn.linear.default_kernel_init  # Flax's, for ordinary kernels


def check_layer(layer: Any, x: Array) -> None:
    """Raises unless the attributes common to both kinds of layers are valid and `x` is floating."""
    check_implementation(layer.implementation)
    check_integer("features", layer.features, 1)
    as_spec(layer.kernel)
    check_instance("input_quant", layer.input_quant, ActivationSpec)
    check_floating("x", x)


def check_implementation(implementation: Any) -> None:
    """Raises ValueError unless it is a known name, or a tuple of `(path pattern, name)` pairs."""
    names = implementation_names()
    if not isinstance(implementation, tuple):
        check_choice("implementation", implementation, names)
        return
    for pattern, name in implementation:
        check_choice(f"implementation[{pattern!r}]", name, names)


def is_trained(layer: nn.Module, train: bool | None) -> bool:
    """`train`; if None, whether `batch_stats` is mutable or there is a stream `quantize`."""
    if train is not None:
        return train
    if layer.is_initializing():
        return False
    return layer.is_mutable_collection("batch_stats") or layer.has_rng(QUANTIZE_STREAM)


def quantized_input(layer: Any, x: Array, train: bool) -> Array:
    """`x` quantised by the layer's `input_quant`; must be called in the layer's compact method."""
    if layer.input_quant.bits is None:
        return x
    quantizer = ActivationQuantizer(
        layer.input_quant, param_dtype=layer.param_dtype, name="input_quant"
    )
    return quantizer(x, train=train)


def kernel_product(layer: Any, geometry: LayerGeometry, x: Array, train: bool) -> Array:
    """The product plus bias, in the layer's dtype; must be called in the layer's compact method."""
    kernel = bind_or_ordinary(layer.kernel, geometry)
    dtype = layer.dtype or jnp.result_type(x, layer.param_dtype)
    implementation = _implementation(layer, kernel, dtype, train)
    factors = _factors(layer, kernel, train)
    with _matmul_precision(layer.precision):
        y = kernel.apply(factors, x.astype(dtype), implementation)
    stored = kernel.factors
    if layer.has_variable(FACTORS, "bias"):
        y += layer.get_variable(FACTORS, "bias").astype(dtype)
    elif layer.use_bias:
        bias = Factor("bias", (layer.features,), init=layer.bias_init)
        stored += (bias,)
        y += _param(layer, bias).astype(dtype)
    record_layer(
        layer,
        LayerRecord(**vars(geometry), factors=stored, kernel=kernel, implementation=implementation),
    )
    return y


def _factors(layer: nn.Module, kernel: Kernel, train: bool) -> dict[str, Array]:
    """The quantised factors, from the collection `factors` if it holds those of this layer."""
    if layer.has_variable(FACTORS, kernel.factors[0].name):
        return {f.name: layer.get_variable(FACTORS, f.name) for f in kernel.factors}
    declared = kernel.factors
    if isinstance(kernel, OrdinaryKernel) and layer.kernel_init is not None:
        declared = tuple(dataclasses.replace(f, init=layer.kernel_init) for f in declared)
    params = {factor.name: _param(layer, factor) for factor in declared}
    return kernel.quantize(params, _quantize_key(layer, kernel, train))


def _param(layer: Any, factor: Factor) -> Array:
    return layer.param(factor.name, factor.init, factor.shape, layer.param_dtype)


def _implementation(layer: Any, kernel: Kernel, dtype: Any, train: bool) -> str | None:
    """The implementation of the kernel; None if there is nothing to choose.

    If several names stand for the same program, it is the canonical one.
    """
    if not kernel.implementations:
        return None
    wanted = _matching(layer.implementation, kernel.layer.name)
    if wanted == "auto":
        return kernel.choose_implementation(dtype, is_training=train)
    return kernel.canonical(wanted)


def _matmul_precision(precision: Any) -> contextlib.AbstractContextManager[Any]:
    """Sets the precision of matrix products; None keeps JAX's default."""
    if precision is None:
        return contextlib.nullcontext()
    pair = precision if isinstance(precision, tuple) else (precision, precision)
    if len(pair) != 2 or pair[0] != pair[1]:
        raise ValueError(
            f"`precision` must be the same for both operands of a product; got {precision!r}."
        )
    name = pair[0]
    return jax.default_matmul_precision(name if isinstance(name, str) else name.name.lower())


def _matching(implementation: str | tuple[tuple[str, str], ...], path: str) -> str:
    """The implementation for a path, by the first pattern (`fnmatch`) that matches, or `auto`."""
    if isinstance(implementation, str):
        return implementation
    matches = (name for pattern, name in implementation if matches_path(pattern, path))
    return next(matches, "auto")


def _quantize_key(layer: nn.Module, kernel: Kernel, train: bool) -> Key | None:
    if not train or not kernel.is_random:
        return None
    if not layer.has_rng(QUANTIZE_STREAM):
        raise ValueError(
            f"`rngs` must hold {QUANTIZE_STREAM!r} to train with a quantisation ratio below 1 "
            f"(layer {'/'.join(layer.path)}); pass rngs={{{QUANTIZE_STREAM!r}: key}}."
        )
    return layer.make_rng(QUANTIZE_STREAM)
