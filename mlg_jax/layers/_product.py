"""What convolutions and dense layers share: checks, quantised input, product, bias, record."""

import dataclasses
import fnmatch
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mlg_jax._checks import check_choice, check_floating, check_instance, check_integer
from mlg_jax._types import Array, FactorRecord, Key, LayerRecord
from mlg_jax.generation import IMPLEMENTATIONS
from mlg_jax.layers._activation import ActivationQuantizer
from mlg_jax.layers._kernel import KernelProvider, as_choice
from mlg_jax.layers._records import record_layer
from mlg_jax.quant import ActivationSpec

QUANTIZE_STREAM = "quantize"


def check_layer(layer: Any, x: Array) -> None:
    """Raises unless the attributes that both kinds of layers have fit, and `x` is floating."""
    check_implementation(layer.implementation)
    check_integer("features", layer.features, 1)
    as_choice(layer.kernel)
    check_instance("input_quant", layer.input_quant, ActivationSpec)
    check_floating("x", x)


def check_implementation(implementation: Any) -> None:
    """Raises unless it is one of `IMPLEMENTATIONS`, or `(path pattern, one of them)` pairs."""
    if not isinstance(implementation, tuple):
        check_choice("implementation", implementation, IMPLEMENTATIONS)
        return
    for pattern, name in implementation:
        check_choice(f"implementation[{pattern!r}]", name, IMPLEMENTATIONS)


def quantized_input(layer: Any, x: Array, train: bool) -> Array:
    """`x` as the layer's `input_quant` has it; to be called in its compact method."""
    if layer.input_quant.bits is None:
        return x
    quantizer = ActivationQuantizer(
        layer.input_quant, param_dtype=layer.param_dtype, name="input_quant"
    )
    return quantizer(x, train=train)


def kernel_product(layer: nn.Module, record: LayerRecord, x: Array, train: bool) -> Array:
    """The layer's product plus bias, in its dtype; to be called in its compact method."""
    assert record.kernel is not None
    provider = as_choice(layer.kernel).resolve(record.name, record.kernel)
    entries = provider.records(record.kernel)
    params = {
        e.name: layer.param(
            e.name,
            provider.initializer(e.name, record.kernel),
            e.shape,
            layer.param_dtype,
        )
        for e in entries
    }
    factors = provider.quantize(params, _quantize_key(layer, provider, train))
    dtype = layer.dtype or jnp.result_type(x, layer.param_dtype)
    wanted = _matching(layer.implementation, record.name)
    implementation = provider.implementation(wanted, record, dtype, is_training=train)
    record = dataclasses.replace(record, implementation=implementation)
    y = provider.apply(factors, record, x.astype(dtype))
    if layer.use_bias:
        bias = layer.param(
            "bias",
            nn.initializers.zeros,
            (layer.features,),
            layer.param_dtype,
        )
        y += bias.astype(dtype)
        entries += (FactorRecord("bias", bias.shape),)
    record_layer(layer, dataclasses.replace(record, factors=entries, provider=provider))
    return y


def _matching(implementation: str | tuple[tuple[str, str], ...], path: str) -> str:
    """The implementation for a path: the first pattern (`fnmatch`) that matches decides."""
    if isinstance(implementation, str):
        return implementation
    matches = (name for pattern, name in implementation if fnmatch.fnmatchcase(path, pattern))
    return next(matches, "auto")


def _quantize_key(layer: nn.Module, provider: KernelProvider, train: bool) -> Key | None:
    if not train or not provider.is_random:
        return None
    if not layer.has_rng(QUANTIZE_STREAM):
        raise ValueError(
            f"`rngs` must hold {QUANTIZE_STREAM!r} to train with a quantisation ratio below 1 "
            f"(layer {'/'.join(layer.path)}); pass rngs={{{QUANTIZE_STREAM!r}: key}}."
        )
    return layer.make_rng(QUANTIZE_STREAM)
