"""Models by name: an architecture is data, its layers are partials of one convolution."""

import fnmatch
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mlg_jax._checks import (
    check_choice,
    check_float_dtype,
    check_instance,
    check_integer,
    check_real,
)
from mlg_jax.generation import GenerationSpec
from mlg_jax.layers import (
    EXECUTIONS,
    BatchNorm,
    Conv,
    Dense,
    DenseKernel,
    GeneratedKernel,
    KernelChoice,
    KernelsByPath,
    layer_records,
)
from mlg_jax.models._blocks import BasicBlock, BottleneckBlock, LayerFactory
from mlg_jax.models._shapes import scaled
from mlg_jax.models.alexnet import AlexNet
from mlg_jax.models.mobilenet_v2 import MobileNetV2
from mlg_jax.models.resnet import STEMS, ResNet
from mlg_jax.models.squeezenet import SqueezeNet
from mlg_jax.models.vgg import VGG
from mlg_jax.quant import ActivationSpec, QuantSpec
from mlg_jax.remat import NO_REMAT, PRESETS, Policy

Generation = GenerationSpec | Mapping[str, GenerationSpec | None] | None

BASE_CHANNELS = 64


def _resnet(stage_sizes: Any, block: Any, *, width: float, **options: Any) -> ResNet:
    return ResNet(stage_sizes, block, base_channels=scaled(BASE_CHANNELS, width), **options)


def _without_norm(network: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """As published: biases in the place of norms."""
    return network(**{**options, "norm": None})


MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet10": functools.partial(_resnet, (1, 1, 1, 1), BasicBlock),
    "resnet18": functools.partial(_resnet, (2, 2, 2, 2), BasicBlock),
    "resnet34": functools.partial(_resnet, (3, 4, 6, 3), BasicBlock),
    "resnet50": functools.partial(_resnet, (3, 4, 6, 3), BottleneckBlock),
    "resnet101": functools.partial(_resnet, (3, 4, 23, 3), BottleneckBlock),
    "resnet152": functools.partial(_resnet, (3, 8, 36, 3), BottleneckBlock),
    "vgg16": functools.partial(VGG, (2, 2, 3, 3, 3)),
    "alexnet": functools.partial(_without_norm, AlexNet),
    "squeezenet": functools.partial(_without_norm, SqueezeNet),
    "mobilenet_v2": MobileNetV2,
}


def create_model(
    name: str,
    *,
    num_classes: int,
    stem: str = "cifar",
    width: float = 1.0,
    generation: Generation = None,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    execution: str = "auto",
    remat: Policy | str | None = None,
    dtype: Any = None,
) -> nn.Module:
    """Creates a model.

    Args:
        name: one of `MODELS` (resnet10, resnet18, resnet34, resnet50, resnet101, resnet152, vgg16,
            alexnet, squeezenet (1.1), mobilenet_v2).
        num_classes: number of logits, at least 1.
        stem: `cifar` (32 x 32 images; a residual network's classifier then has no bias) or
            `imagenet` (224 x 224).
        width: factor on every channel count, > 0; rounded, at least one channel (mobilenet_v2:
            to multiples of 8).
        generation: how convolution kernels are generated: None (ordinary kernels), one spec, or
            `{path pattern: spec or None}`, where the first pattern that matches (`fnmatch`, e.g.
            `"stage4_*/conv?"`) decides and layers without a match stay ordinary.
        weight_bits: width of dense layers and of kernels that cannot be generated, 1 to 16; None
            does not quantise them.
        activation_bits: width of the inputs of convolutions and dense layers, 1 to 16; None does
            not quantise them.
        execution: how a generated kernel is applied; `auto` chooses.
        remat: what is kept for the backward pass: a preset's name (`mlg_jax.remat.PRESETS`) or a
            `mlg_jax.remat.Policy` with its capacities; None keeps what JAX would.
        dtype: of the computation, e.g. `jnp.bfloat16`; None is float32. Parameters are float32,
            or float64 if `dtype` is (which needs `jax_enable_x64`).

    Returns:
        A Linen module: `model.init(key, x)`, `model.apply(variables, x, train=False)` with x
        `[N, H, W, C]`. Collections `params`, and `batch_stats` with norms or quantised
        activations. Random streams, in training: `quantize` with partial quantisation, `dropout`
        in vgg16 (stem `imagenet`), alexnet, squeezenet, mobilenet_v2.

    Raises:
        TypeError, ValueError: an argument of another type or out of range, or a pattern that
            matches no layer.

    Example:
        >>> spec = GenerationSpec.from_bits(2, 44, 3, 6, 3)
        >>> model = create_model("resnet18", num_classes=10, generation=spec, weight_bits=8)

    Reference: https://arxiv.org/abs/1512.03385, https://arxiv.org/abs/2108.11430.
    """
    check_choice("name", name, MODELS)
    check_integer("num_classes", num_classes, 1)
    check_choice("stem", stem, STEMS)
    check_real("width", width, 0.0, exclusive_minimum=True)
    check_choice("execution", execution, EXECUTIONS)
    policy = _policy(remat)
    compute_dtype, param_dtype = _dtypes(dtype)
    fallback = DenseKernel(QuantSpec(weight_bits))
    shared = {
        "input_quant": ActivationSpec(activation_bits),
        "execution": execution,
        "dtype": compute_dtype,
        "param_dtype": param_dtype,
    }
    classifier = DenseKernel(QuantSpec(weight_bits), fan="in")
    model = MODELS[name](
        num_classes=num_classes,
        stem=stem,
        width=width,
        conv=LayerFactory.of(Conv, kernel=_kernels(generation, fallback), **shared),
        dense=LayerFactory.of(Dense, kernel=classifier, **shared),
        norm=LayerFactory.of(BatchNorm, dtype=compute_dtype, param_dtype=param_dtype),
        remat=policy,
    )
    if isinstance(generation, Mapping):
        _check_patterns(model, generation)
    return model


def _policy(remat: Policy | str | None) -> Policy:
    check_instance("remat", remat, (str, Policy, type(None)))
    if isinstance(remat, str):
        check_choice("remat", remat, PRESETS)
        return Policy(remat)
    return remat or NO_REMAT


def _dtypes(dtype: Any) -> tuple[Any, Any]:
    """Compute and parameter dtype."""
    if dtype is None:
        return None, jnp.float32
    check_float_dtype("dtype", dtype)
    compute = jnp.dtype(dtype)
    return compute, jnp.promote_types(compute, jnp.float32)


def _kernels(generation: Generation, fallback: DenseKernel) -> KernelChoice:
    check_instance("generation", generation, (type(None), GenerationSpec, Mapping))
    if generation is None:
        return fallback
    if isinstance(generation, GenerationSpec):
        return GeneratedKernel(generation, fallback)
    for pattern, spec in generation.items():
        check_instance("generation pattern", pattern, str)
        check_instance(f"generation[{pattern!r}]", spec, (type(None), GenerationSpec))
    choices = tuple((pattern, _kernels(spec, fallback)) for pattern, spec in generation.items())
    return KernelsByPath(choices, fallback)


def _check_patterns(model: nn.Module, generation: Mapping[str, Any]) -> None:
    paths = [record.name for record in layer_records(model) if record.kind == "conv"]
    for pattern in generation:
        if not fnmatch.filter(paths, pattern):
            raise ValueError(
                f"`generation` must have patterns that match a convolution of {paths}; "
                f"got {pattern!r}."
            )
