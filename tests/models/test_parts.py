"""Pooling to a grid against its definition; mode, rate and random stream of dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mlg_jax import create_model
from mlg_jax.models._parts import adaptive_mean_pool, dropout, flatten_channels_first
from tests._tolerances import ELEMENTWISE, relative_error
from tests.models import _definitions

WITH_DROPOUT = [
    ("vgg16", "imagenet", 32),
    ("alexnet", "cifar", 16),
    ("squeezenet", "cifar", 4),
    ("mobilenet_v2", "cifar", 4),
]


class Dropped(nn.Module):
    rate: float = 0.25

    @nn.compact
    def __call__(self, x, *, train=False):
        return dropout(self, x, self.rate, name="dropout", train=train)


@pytest.mark.parametrize("shape", [(6, 6), (12, 18), (7, 13), (5, 1), (3, 20)])
def test_adaptive_mean_pool(shape):
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    pooled = adaptive_mean_pool(jnp.asarray(x), 6)
    expected = _definitions.adaptive_mean_pool(x.astype(np.float64), 6)
    assert relative_error(pooled, expected) <= ELEMENTWISE
    if shape == (6, 6):
        assert np.array_equal(pooled, x)


def test_flattening_visits_channels_last_to_first():
    x = jnp.arange(24.0).reshape(1, 2, 3, 4)
    flat = flatten_channels_first(x)
    assert flat.shape == (1, 24)
    assert flat[0, :6].tolist() == [0, 4, 8, 12, 16, 20]


def test_dropout_is_the_identity_outside_training():
    x = jnp.arange(6.0)
    model = Dropped()
    assert np.array_equal(model.apply({}, x), x)
    assert np.array_equal(model.init_with_output(jax.random.key(0), x, train=True)[0], x)


def test_dropout_keeps_the_mean_and_its_share():
    x = jnp.ones(10_000)
    y = Dropped().apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    # Five standard deviations of a frequency over 10,000 draws.
    assert abs(float(jnp.mean(y == 0)) - 0.25) < 5 * (0.25 * 0.75 / 10_000) ** 0.5


def logits(model, variables, x, **options):
    mutable = [k for k in variables if k != "params"]
    return model.apply(variables, x, mutable=mutable, **options)[0]


@pytest.mark.bad_input
@pytest.mark.parametrize("name, stem, size", WITH_DROPOUT)
def test_training_without_the_stream(name, stem, size):
    model = create_model(name, num_classes=3, stem=stem, width=0.0625)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    key = jax.random.key(0)
    variables = jax.eval_shape(lambda x: model.init(key, x, train=True), x)
    jax.eval_shape(lambda v, x: logits(model, v, x), variables, x)
    for rngs in ({}, {"params": key}):
        with pytest.raises(ValueError, match=r"`rngs` must hold 'dropout' .*\(layer dropout1?\)"):
            jax.eval_shape(
                lambda v, x, r=rngs: logits(model, v, x, train=True, rngs=r), variables, x
            )


def test_small_vgg_has_no_dropout():
    model = create_model("vgg16", num_classes=3, width=0.0625)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    out = jax.eval_shape(lambda v, x: logits(model, v, x, train=True), variables, x)
    assert out.shape == (1, 3)
