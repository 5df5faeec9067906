"""Small networks of the package's own layers, so that tests compile in seconds."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp

from mlg_jax.layers import BatchNorm, Conv, Dense, DenseKernel, GeneratedKernel, layer_records
from mlg_jax.models import MODELS, BasicBlock, ResNet, _registry
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
    fallback = DenseKernel(QuantSpec(weight_bits))
    kernel = fallback if generation is None else GeneratedKernel(generation, fallback)
    return ResNet(
        stage_sizes,
        block,
        num_classes=num_classes,
        stem=stem,
        base_channels=channels,
        conv=functools.partial(Conv, kernel=kernel, dtype=dtype, implementation=implementation),
        dense=functools.partial(
            Dense, kernel=DenseKernel(QuantSpec(weight_bits), fan="in"), dtype=dtype
        ),
        norm=functools.partial(BatchNorm, dtype=dtype),
        remat=remat,
    )


def variable_shapes(model):
    """Abstract variables of a model."""
    x = jax.ShapeDtypeStruct(model.input_shape, jnp.float32)
    return jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), x)


def record_named(model, name):
    """The record of one layer."""
    return next(r for r in layer_records(model) if r.name == name)
