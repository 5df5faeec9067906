"""Small networks of the package's own layers, so that tests compile in seconds."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp

from mlg_jax.kernels import GeneratedKernel, GenerationSpec, KernelsByPath, OrdinarySpec
from mlg_jax.layers import BatchNorm, Conv, Dense, layer_records
from mlg_jax.models import MODELS, BasicBlock, Layers, ResNet, _registry
from mlg_jax.quant import QuantSpec
from mlg_jax.remat import NO_REMAT


def tiny_networks():
    """While it lasts `create_model` knows "tiny": two blocks, 64 and 128 channels at full width."""
    tiny = functools.partial(_registry._resnet, (1, 1), BasicBlock)
    return mock.patch.dict(MODELS, tiny=tiny)


def tiny_resnet(
    generation=None,
    *,
    stage_sizes=(1, 1),
    block=BasicBlock,
    stem="cifar",
    channels=16,
    num_classes=4,
    weight_bits=None,
    dtype=None,
    remat=NO_REMAT,
    implementation="generate",
):
    """A residual network of a few blocks, made as `create_model` makes its own."""
    weights = QuantSpec(weight_bits)
    kernel = KernelsByPath((("*", generation),), OrdinarySpec(weights))
    shared = {"dtype": dtype, "kernel_init": None}
    return ResNet(
        stage_sizes,
        block,
        num_classes=num_classes,
        stem=stem,
        base_channels=channels,
        layers=Layers(
            conv=functools.partial(Conv, kernel=kernel, implementation=implementation, **shared),
            dense=functools.partial(Dense, kernel=OrdinarySpec(weights, fan="in"), **shared),
            norm=functools.partial(BatchNorm, momentum=0.9, dtype=dtype),
            remat=remat,
        ),
    )


def variable_shapes(model):
    """Abstract variables of a model."""
    x = jax.ShapeDtypeStruct(model.input_shape, jnp.float32)
    return jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), x)


def apply_generated(implementation, factors, x, layer):
    """The product of a layer with a generated kernel; its bases follow from the factors."""
    return GeneratedKernel(GenerationSpec(1, 1), layer).apply(factors, x, implementation)


def record_named(model, name):
    """The record of one layer."""
    return next(r for r in layer_records(model) if r.name == name)
