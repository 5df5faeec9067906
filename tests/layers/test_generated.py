"""Plain Flax models with replaced kernels: variables, values, patterns, files, errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mlg_jax
from mlg_jax import GenerationSpec, QuantSpec, generated, size_report
from mlg_jax.compress import ProjectionSpec, project_model
from mlg_jax.kernels import CirculantSpec
from mlg_jax.layers import Conv, layer_records
from tests._tolerances import CONTRACTION, relative_error

SPEC = GenerationSpec.from_bits(2, 8, 4, 6, 4)
SHAPE = (2, 8, 8, 3)


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.Conv(self.features, (3, 3), padding="VALID")(x))
        return nn.Conv(self.features, (1, 1), use_bias=False)(nn.LayerNorm()(y))


class Net(nn.Module):
    """A module with lists of layers, a setup method and no argument `train`."""

    widths: list

    def setup(self):
        self.blocks = [Block(width) for width in self.widths]
        self.head = nn.Dense(5)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


NET = Net([12, 16])


@functools.cache
def variables():
    return jax.jit(NET.init)(jax.random.key(0), image())


def image():
    return jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)


def test_ordinary_kernels_change_nothing():
    model = generated(NET, {})
    jax.tree.map(
        np.testing.assert_array_equal, jax.jit(model.init)(jax.random.key(0), image()), variables()
    )
    got, expected = model.apply(variables(), image()), NET.apply(variables(), image())
    assert relative_error(got, expected) < CONTRACTION


def test_patterns_choose_and_factors_take_the_kernels_place():
    model = generated(NET, {"blocks_0/*": SPEC, "head": QuantSpec(4)}, weight_bits=8)
    records = {r.name: r for r in layer_records(model, SHAPE)}
    assert records["blocks_0/Conv_0"].kernel.spec == SPEC
    assert records["blocks_1/Conv_0"].kernel.spec.quant == QuantSpec(8)
    assert records["head"].kernel.spec.quant == QuantSpec(4)
    assert records["blocks_0/LayerNorm_0"].kind == "other"
    params = jax.eval_shape(model.init, jax.random.key(0), image())["params"]
    assert set(params["blocks_0"]["Conv_0"]) == {"basis", "coeff_in", "coeff_out", "bias"}
    size = size_report(model, {"params": params}, input_shape=SHAPE)
    plain = sum(leaf.size for leaf in jax.tree.leaves(variables()))
    assert size.num_dense_params == plain and size.kb < size.dense_kb / 2


def test_a_trained_model_is_projected_onto_its_generated_self():
    model = generated(NET, {"blocks_*/Conv_0": GenerationSpec(2, 10)})
    projection = project_model(
        model,
        variables(),
        key=jax.random.key(1),
        spec=ProjectionSpec(num_steps=100),
        input_shape=SHAPE,
    )
    assert set(projection.errors) == {"blocks_0/Conv_0", "blocks_1/Conv_0"}
    assert max(projection.errors.values()) < 0.7
    assert model.apply(projection.variables, image()).shape == (2, 5)


def test_layers_that_cannot_be_replaced_stay():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.ConvTranspose(6, (3, 3))(x)
            x = nn.Conv(6, (3, 3), input_dilation=2, padding=((1, 1), (1, 1)))(x)
            x = nn.Dense(6, dot_general=lambda *args, **kwargs: jax.lax.dot_general(*args))(x)
            return nn.Conv(6, (3,))(x.mean(1))

    model = generated(Odd(), {})
    got = jax.jit(model.init)(jax.random.key(0), image())
    jax.tree.map(
        np.testing.assert_array_equal, got, jax.jit(Odd().init)(jax.random.key(0), image())
    )
    assert all(record.kind == "other" for record in layer_records(model, SHAPE))


def test_own_layers_with_ordinary_kernels_are_replaced_too():
    class Mixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Conv(12, (3, 3), kernel=SPEC)(Conv(12, (3, 3), use_bias=False)(x))

    records = layer_records(generated(Mixed(), CirculantSpec(3)), SHAPE)
    assert {r.name: r.kernel.spec for r in records} == {"Conv_0": SPEC, "Conv_1": CirculantSpec(3)}


def test_modes_reach_models_by_their_own_names():
    class Deterministic(nn.Module):
        @nn.compact
        def __call__(self, x, *, deterministic):
            x = nn.BatchNorm(use_running_average=deterministic)(nn.Conv(8, (3, 3))(x))
            return nn.Dense(4)(nn.Dropout(0.5)(x.mean((1, 2)), deterministic=deterministic))

    model = generated(Deterministic(), SPEC)
    names = [record.name for record in layer_records(model, SHAPE, is_training=True)]
    assert names == ["BatchNorm_0", "Conv_0", "Dense_0"]


@pytest.mark.bad_input
def test_bad_input(tmp_path):
    with pytest.raises(TypeError, match="`model` must be Module; got 3"):
        generated(3, SPEC)
    with pytest.raises(TypeError, match="`kernels` must be KernelSpec or QuantSpec or Mapping"):
        generated(NET, 3)
    with pytest.raises(ValueError, match=r"patterns that match a layer of \['blocks_0/.*got 'con"):
        layer_records(generated(NET, {"conv*": SPEC}), SHAPE)
    with pytest.raises(ValueError, match="`input_shape` must be given, as a Net does not name"):
        layer_records(NET)


@pytest.mark.bad_input
def test_files_name_the_module_that_they_need(tmp_path):
    path = tmp_path / "net.mlg"
    model = generated(NET, {"blocks_*": SPEC})
    start = jax.jit(model.init)(jax.random.key(0), image())
    mlg_jax.save_packed(path, model, start, input_shape=SHAPE)
    load = functools.partial(mlg_jax.load_packed, path)
    with pytest.raises(ValueError, match="`model` must be given, as the file needs .*Net; got Non"):
        load()
    with pytest.raises(ValueError, match=r"must be the module that the file needs.*Net; got .*Bl"):
        load(model=Block(3))
    with pytest.raises(mlg_jax.export.PackedFileError, match="net.mlg: its tensors must be those"):
        load(model=Net([12, 20]))
    with pytest.raises(ValueError, match="`fold` must be False"):
        (
            mlg_jax.save_packed(path, *bare(), input_shape=SHAPE),
            mlg_jax.load_packed(path, model=bare()[0], fold=True),
        )
    with pytest.raises(ValueError, match="`model` must return logits, one array"):
        mlg_jax.save_packed(
            path, Conv(3, 3), Conv(3, 3).init(jax.random.key(0), image()), input_shape=SHAPE
        )


class Followed(nn.Module):
    """Convolutions followed by norms of every kind."""

    @nn.compact
    def __call__(self, x):
        for i, (scale, bias) in enumerate(itertools.product((True, False), repeat=2)):
            x = Conv(12, (3, 3), kernel=SPEC, use_bias=bool(i % 2), name=f"conv{i}")(x)
            norm = mlg_jax.layers.BatchNorm(use_scale=scale, use_bias=bias, follows=f"conv{i}")
            x = nn.relu(norm(x, train=False))
        return nn.Dense(3)(x.mean((1, 2)))


def test_norms_without_scale_or_bias_are_served_and_folded(tmp_path):
    model, path = Followed(), tmp_path / "net.mlg"
    start = jax.jit(model.init)(jax.random.key(0), image())
    move = lambda v: v + 0.3 * jnp.abs(jnp.sin(jnp.arange(v.size))).reshape(v.shape)  # noqa: E731
    moved = jax.tree.map(move, start)
    mlg_jax.save_packed(path, model, moved, input_shape=SHAPE)
    expected = jax.jit(model.apply)(moved, image())
    images = np.asarray(image())
    exact = mlg_jax.load_packed(path, model=model, batch_sizes=(2,))
    np.testing.assert_array_equal(exact(images), expected)
    folded = mlg_jax.load_packed(path, model=model, batch_sizes=(2,), fold=True)
    assert relative_error(folded(images), expected) < CONTRACTION


def test_artefacts_of_foreign_models_take_any_batch(tmp_path):
    pytest.importorskip("flatbuffers", reason="needs mlg-jax[export]")
    path, images = tmp_path / "net.mlg", np.asarray(image())
    for model in (generated(NET, SPEC), Followed()):
        start = jax.jit(model.init)(jax.random.key(0), image())
        mlg_jax.save_packed(path, model, start, input_shape=SHAPE)
        data = mlg_jax.engine.export_stablehlo(
            mlg_jax.export.read_packed(path), model=model, platforms=("cpu",)
        )
        logits = jax.export.deserialize(bytearray(data)).call(images)
        assert relative_error(logits, model.apply(start, image())) < CONTRACTION


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return mlg_jax.layers.BatchNorm(name="norm")(x.mean((1, 2)), train=False)


def bare():
    return Normed(), Normed().init(jax.random.key(0), image())
