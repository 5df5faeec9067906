"""Flax NNX: layers, models with other kernels, the way to Linen and to packed files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mlg_jax
import mlg_jax.nnx
from mlg_jax import GenerationSpec, QuantSpec, size_report
from mlg_jax.kernels import OrdinarySpec
from tests._tolerances import CONTRACTION, relative_error

SPEC = GenerationSpec.from_bits(2, 8, 4, 6, 4)
SHAPE = (2, 8, 8, 3)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 16, (3, 3), padding="VALID", rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.rest = nnx.List([nnx.Conv(16, 12, (3, 3), 2, rngs=rngs), nnx.Linear(12, 5, rngs=rngs)])

    def __call__(self, x):
        x = self.rest[0](nnx.relu(self.norm(self.conv(x))))
        return self.rest[1](self.drop(x.mean((1, 2))))


def image():
    return jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)


def net():
    model = Net(nnx.Rngs(0))
    model.eval()
    return model


@pytest.mark.parametrize("kernel", [OrdinarySpec(), QuantSpec(5), SPEC])
def test_layers_are_those_of_linen(kernel):
    conv = mlg_jax.nnx.Conv(3, 16, (3, 3), 2, kernel=kernel, padding=1, rngs=nnx.Rngs(0))
    linear = mlg_jax.nnx.Linear(3, 8, kernel=QuantSpec(4), use_bias=False, rngs=nnx.Rngs(0))
    for layer in (conv, linear):
        params = {name: getattr(layer, name)[...] for name in layer.names}
        expected = layer.layer.apply({"params": params}, image())
        assert relative_error(nnx.jit(layer)(image()), expected) < CONTRACTION


def test_gradients_reach_every_factor():
    layer = mlg_jax.nnx.Conv(3, 16, (3, 3), kernel=SPEC, rngs=nnx.Rngs(0))
    grads = nnx.grad(lambda layer: jnp.sum(layer(image()) ** 2))(layer)
    leaves = jax.tree.leaves(grads)
    assert len(leaves) == 4 and all(np.any(leaf != 0) for leaf in leaves)


def test_partial_quantisation_draws_from_its_stream():
    half = GenerationSpec(2, 8, *(QuantSpec(2, ratio=0.5),) * 3)
    layer = mlg_jax.nnx.Conv(3, 16, (3, 3), kernel=half, rngs=nnx.Rngs(0))
    rngs = nnx.Rngs(quantize=1)
    assert not np.array_equal(layer(image(), rngs=rngs), layer(image(), rngs=rngs))
    assert np.array_equal(layer(image()), layer(image()))


def test_generated_models_start_at_the_projection_of_their_kernels():
    model = net()
    same = mlg_jax.nnx.generate(model, {})
    assert relative_error(same(image()), model(image())) < CONTRACTION
    small = mlg_jax.nnx.generate(model, {"rest/0": GenerationSpec(2, 0), "conv": None})
    assert set(small.rest[0].names) == {"basis", "coeff_in", "bias"}
    finer = mlg_jax.nnx.generate(model, {"rest/0": GenerationSpec(8, 0)})
    errors = [relative_error(m(image()), model(image())) for m in (small, finer)]
    assert 0 < errors[1] < errors[0] < 1
    assert isinstance(model.rest[0], nnx.Conv), "the model itself is not changed"


@pytest.mark.parametrize("kernels", [{}, SPEC])
def test_linen_computes_the_same_in_both_modes(kernels):
    model = mlg_jax.nnx.generate(net(), kernels)
    network, variables = mlg_jax.nnx.to_linen(model)
    model.eval()
    assert relative_error(network.apply(variables, image()), model(image())) < CONTRACTION
    options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(1)}}
    _, updated = network.apply(variables, image(), **options)
    model.train()
    model(image())
    mean = updated["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(mean, model.norm.mean[...], rtol=1e-5, atol=1e-7)


class Counter(nnx.Variable):
    """A kind of variable that Linen has no name for."""


class Scaled(nnx.Module):
    def __init__(self, size):
        self.scale = nnx.Param(jnp.ones(size))
        self.calls = Counter(jnp.float32(0))

    def __call__(self, x):
        self.calls[...] += 1
        return (x.mean((1, 2)) * self.scale[...].sum() + self.calls[...])[:, :2]


def test_all_variables_are_passed_on_and_shapes_tell_models_apart():
    """Models that differ in their numbers share compiled programs, so none may be a constant."""
    (small, small_variables), (large, large_variables) = map(
        mlg_jax.nnx.to_linen, (Scaled(3), Scaled(7))
    )
    assert small != large and small == mlg_jax.nnx.to_linen(Scaled(3))[0]
    assert size_report(small, small_variables, input_shape=SHAPE).num_params == 3
    assert size_report(large, large_variables, input_shape=SHAPE).num_params == 7
    _, updated = small.apply(small_variables, image(), mutable=["counter"])
    assert updated["counter"]["calls"] == 1
    later = {**small_variables, **updated}
    difference = small.apply(later, image()) - small.apply(small_variables, image())
    np.testing.assert_allclose(difference, 1.0, rtol=1e-5)


def test_packed_files(tmp_path):
    network, variables = mlg_jax.nnx.to_linen(mlg_jax.nnx.generate(net(), SPEC))
    path, shape = tmp_path / "net.mlg", SHAPE
    mlg_jax.save_packed(path, network, variables, input_shape=shape)
    size = size_report(network, variables, input_shape=shape)
    assert size.kb < size.dense_kb / 2
    fresh = mlg_jax.nnx.generate(Net(nnx.Rngs(5)), SPEC)
    predictor = mlg_jax.load_packed(path, model=mlg_jax.nnx.to_linen(fresh)[0], batch_sizes=(2,))
    expected = jax.jit(network.apply)(variables, image())
    np.testing.assert_array_equal(predictor(np.asarray(image())), expected)


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(ValueError, match=r"patterns that match a layer of \['conv', .*; got 'c'"):
        mlg_jax.nnx.generate(net(), {"c": SPEC})
    with pytest.raises(TypeError, match="`model` must be Module; got 3"):
        mlg_jax.nnx.to_linen(3)
