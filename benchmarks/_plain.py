"""The same architectures from Flax's own layers, trained with JAX's own gradients."""

import contextlib
from unittest import mock

import flax.linen as nn
from jax import lax

from mlg_jax.models import Layers, Partial, _blocks


class PlainConv(nn.Conv):
    """`flax.linen.Conv` with the models' calling convention."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return super().__call__(x)


class PlainNorm(nn.Module):
    """`flax.linen.BatchNorm` with the models' calling convention."""

    follows: str | None = None
    dtype: object = None

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)


class PlainDense(nn.Dense):
    """`flax.linen.Dense` with the models' calling convention."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return super().__call__(x)


def plain_layers(*, has_norm=True, dtype=None, **options):
    """`Layers` that make Flax's own layers; the options are passed to `Layers`."""
    own = {"conv": PlainConv, "dense": PlainDense, "norm": PlainNorm if has_norm else None}
    made = {name: layer and Partial.of(layer, dtype=dtype) for name, layer in own.items()}
    return Layers(**made, **options)


def is_plain(model):
    """Whether a model is made of Flax's own layers."""
    return model.layers.conv.layer is PlainConv


class CheckpointedBlocks:
    """`flax.linen.remat` around every block, in place of a policy."""

    def stem(self, fn, name="stem", **_):
        """Checkpoints the stem."""
        return nn.remat(fn)

    def block(self, fn, name="", **_):
        """Checkpoints a block."""
        return nn.remat(fn)

    def unit(self, fn, name="", **_):
        """Leaves a unit alone: its block is checkpointed."""
        return fn


def plain_max_pool(x, window, strides, padding=((0, 0), (0, 0))):
    """JAX's own max-pooling."""
    return lax.reduce_window(
        x, -float("inf"), lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0))
    )


@contextlib.contextmanager
def without_our_gradients():
    """Within this context, models are traced with JAX's own gradients of pooling and branches."""
    modules = ("resnet", "_blocks", "squeezenet")
    with contextlib.ExitStack() as stack:
        for name in modules:
            stack.enter_context(mock.patch(f"mlg_jax.models.{name}.max_pool", plain_max_pool))
        stack.enter_context(mock.patch.object(_blocks, "run_after", lambda x, y: x))
        stack.enter_context(mock.patch.object(_blocks, "materialize_cotangent", lambda x: x))
        yield
