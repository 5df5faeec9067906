"""The losses of the pipeline: random streams in training, and views in evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mlg_jax.data import evaluation_views
from mlg_jax.experiment._tasks import classification_loss
from mlg_jax.models import create_model
from mlg_jax.models._parts import dropout

KEY = jax.random.key(0)


class Dropping(nn.Module):
    """Logits are the input after dropout; records the key of the other stream."""

    @nn.compact
    def __call__(self, x, *, train=False):
        seen = self.variable("seen", "draw", jnp.zeros, ())
        if train:
            seen.value = jax.random.uniform(self.make_rng("quantize"))
        return dropout(self, x, 0.5, name="dropout", train=train)


class Quantizing(nn.Module):
    """The first key of a stream, in the scope of `Dropping`."""

    def __call__(self, x):
        return self.make_rng("quantize")


def run(key, train):
    batch = {"image": jnp.arange(1.0, 25.0).reshape(4, 6), "label": jnp.zeros(4, jnp.int32)}
    state = {"seen": {"draw": jnp.zeros(())}}
    return classification_loss(Dropping())({}, state, batch, jax.random.key(key), train)


def test_dropout_draws_from_the_steps_key():
    first, again, other = (float(run(key, True)[0]) for key in (0, 0, 1))
    assert first == again != other
    assert float(run(0, False)[0]) == float(run(1, False)[0]) != first


def test_the_quantisers_stream_is_the_steps_key_itself():
    """Runs without dropout give the same results with and without the second stream."""
    rngs, batch = {"quantize": jax.random.key(3)}, jnp.ones((1, 6))
    alone = jax.random.uniform(Quantizing().apply({}, batch, rngs=rngs))
    _, (_, state) = run(3, True)
    assert float(state["seen"]["draw"]) == float(alone)


class Pixels(nn.Module):
    """Logits that are an image's pixels."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return x.reshape(len(x), -1)


def test_augmented_evaluation_is_of_the_mean_over_views():
    images = jax.random.normal(jax.random.key(0), (5, 3, 3, 1))
    batch = {"image": images, "label": jnp.arange(5)}
    views, weights = evaluation_views(images)
    mean = jnp.einsum("v,vnhwc->nhwc", weights, views)
    evaluate = functools.partial(classification_loss(Pixels(), is_augmented=True), {}, {})
    plain = functools.partial(classification_loss(Pixels()), {}, {})
    found, expected = evaluate(batch, KEY, False), plain({**batch, "image": mean}, KEY, False)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    assert not np.isclose(found[0], plain(batch, KEY, False)[0])
    assert evaluate(batch, KEY, True)[0] == plain(batch, KEY, True)[0]  # training sees one view


@pytest.mark.parametrize(
    "name, stem",
    [
        ("alexnet", "cifar"),
        ("squeezenet", "cifar"),
        ("mobilenet_v2", "cifar"),
        ("vgg16", "imagenet"),
    ],
)
def test_networks_with_dropout_train(name, stem):
    """Traced only: the model raises if its stream is missing."""
    model = create_model(name, num_classes=3, stem=stem, width=0.1)
    image = jax.ShapeDtypeStruct((2, *model.input_shape[1:]), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = dict(jax.eval_shape(model.init, key, image))
    params = variables.pop("params")
    batch = {"image": image, "label": jax.ShapeDtypeStruct((2,), jnp.int32)}
    loss_fn = classification_loss(model)
    loss, _ = jax.eval_shape(lambda *a: loss_fn(*a, True), params, variables, batch, key)
    assert loss.shape == ()
