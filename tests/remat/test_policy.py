"""Presets on whole models: gradients, compiled bytes, densities and overflow."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mlg_jax import GenerationSpec, create_model
from mlg_jax.memory import compiled_memory
from mlg_jax.remat import (
    NO_REMAT,
    PRESETS,
    RematSpec,
    ResidualPolicy,
    _policy,
    checkpoint,
    choose_capacities,
    measure_densities,
)
from tests._models import tiny_resnet
from tests.remat.test_checkpoint import assert_same

EXACT = [name for name, preset in PRESETS.items() if preset.is_exact]


def make(remat=NO_REMAT, **options):
    """A network of three blocks, of which the last two have a convolution as shortcut."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 16, 3)), jnp.float32)
    return tiny_resnet(stage_sizes=(1, 1, 1), channels=8, remat=remat, **options), x


def value_and_grad(model, x, train_key=0):
    """Runs a compiled training step; returns `((loss, new statistics), gradients)`."""
    variables = jax.jit(model.init)(jax.random.key(0), x)
    state = {k: v for k, v in variables.items() if k != "params"}
    rngs = {name: jax.random.key(train_key) for name in ("quantize", "dropout")}

    def loss(params):
        logits, updated = model.apply(
            {"params": params, **state}, x, train=True, mutable=list(state), rngs=rngs
        )
        return jnp.sum(jnp.sin(logits)), updated

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


@functools.cache
def wanted():
    return value_and_grad(*make())


@pytest.mark.parametrize("preset", [name for name in EXACT if name != "none"])
def test_exact_presets_do_not_change_loss_or_gradients(preset):
    got = value_and_grad(*make(RematSpec(preset, capacity=0.96)))
    assert_same(got[0], wanted()[0])
    assert_same(got[1], wanted()[1], 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "squeezenet", "vgg16", "alexnet"])
def test_every_architecture_takes_a_policy(name):
    x = make()[1]
    x = jnp.pad(x, ((0, 0), (8, 8), (8, 8), (0, 0)), mode="reflect")
    model = create_model(name, num_classes=5, width=0.125, remat="bitmap_units")
    variables = jax.jit(model.init)(jax.random.key(0), x)
    rngs = {"dropout": jax.random.key(0)}
    # Measured, as in training: AlexNet's overlapping pooling leaves hardly any zeros.
    densities = jax.jit(functools.partial(measure_densities, model))(variables, x, rngs=rngs)
    capacities = choose_capacities(densities, margin=0.3)  # slices of one example vary in density
    policy = model.remat.with_capacities(capacities)
    got, plain = (
        value_and_grad(model.clone(layers=dataclasses.replace(model.layers, remat=r)), x)
        for r in (policy, NO_REMAT)
    )
    assert_same(got[1], plain[1], 5e-6)


@pytest.mark.parametrize(
    "implementation", [pytest.param("generate", marks=pytest.mark.slow), "factored"]
)
def test_generated_kernels(implementation):
    options = {
        "generation": GenerationSpec.from_bits(2, 8, 3, 6, 3),
        "implementation": implementation,
    }
    got, plain = (
        value_and_grad(*make(remat, **options))
        for remat in (RematSpec("bitmap_blocks", 0.96), NO_REMAT)
    )
    assert_same(got[1], plain[1], 2e-6)


def test_bfloat16():
    grads = [
        value_and_grad(*make(remat, dtype=jnp.bfloat16))[1]
        for remat in (NO_REMAT, RematSpec("blocks"), RematSpec("bitmap_blocks", 0.96))
    ]
    assert_same(grads[2], grads[1])
    assert_same(grads[1], grads[0], 0.05)


def test_rounding_changes_only_gradients_and_depends_on_the_key():
    model, x = make(RematSpec("quantized_blocks"))
    first, second = (value_and_grad(model, x, key) for key in (0, 1))
    assert_same(first[0], wanted()[0])
    flat, other, exact = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (first[1], second[1], wanted()[1])
    )
    assert not np.array_equal(flat, other)
    assert flat @ exact / np.linalg.norm(flat) / np.linalg.norm(exact) > 0.95


@pytest.mark.parametrize(
    "preset, num_examples, options, num_slices",
    [
        ("blocks", 8, {}, 4),
        ("blocks", 6, {}, 2),
        ("blocks", 5, {}, 1),
        ("blocks", 8, {"is_per_example": False}, 1),
        ("blocks", 8, {"has_statistics": True}, 1),
        ("blocks", 8, {"has_mesh": True}, 1),
        ("convs", 8, {}, 1),  # keeps named values
    ],
)
def test_the_batch_is_sliced_where_examples_are_alone(
    monkeypatch, preset, num_examples, options, num_slices
):
    """The largest common divisor with 4; never where the batch is split over devices."""
    seen = []

    def record(fn, policy, **rest):
        seen.append(policy.num_slices)
        return fn

    monkeypatch.setattr(_policy, "lift_policy", record)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    spec = RematSpec(preset, mesh=mesh if options.get("has_mesh") else None)

    class Doubling(nn.Module):
        @nn.compact
        def __call__(self, x):
            is_per_example = options.get("is_per_example", True)
            return spec.block(lambda _, x: 2 * x, is_per_example=is_per_example)(self, x)

    variables = {"batch_stats": {"mean": np.zeros(1)}} if options.get("has_statistics") else {}
    Doubling().apply(variables, np.ones((num_examples, 3), np.float32))
    assert seen == [num_slices]


def test_densities_are_measured_for_every_segment():
    model, x = make(RematSpec("bitmap_units"))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    assert set(variables) == {"params", "batch_stats"}
    densities = measure_densities(model, variables, x)
    blocks = {f"stage{i}_block1" for i in range(1, 4)}
    units = {f"{b}/{u}" for b in blocks for u in ("unit1", "unit2")}
    shortcuts = {f"stage{i}_block1/shortcut_unit" for i in range(2, 4)}
    assert set(densities) == blocks | units | shortcuts  # not of the images
    assert all(0.2 < densities[name] < 0.8 for name in blocks)
    # a block and its first unit have the same input
    assert densities["stage2_block1/unit1"] == densities["stage2_block1"]


def test_capacities_leave_room_and_never_shrink():
    capacities = choose_capacities({"a": 0.5, "b": 0.99, "c": 0.0}, margin=0.1)
    assert capacities == {"a": 36 / 64, "b": 1.0, "c": 1 / 64}
    assert choose_capacities({"a": 0.1}, largest={"a": 0.5}) == {"a": 0.5}


def test_too_small_capacities_overflow():
    model, x = make(RematSpec("bitmap_blocks"))
    densities = measure_densities(model, model.init(jax.random.key(0), x), x)
    fitting = RematSpec("bitmap_blocks").with_capacities(choose_capacities(densities))
    assert_same(value_and_grad(*make(fitting))[1], wanted()[1], 2e-6)
    name = "stage2_block1"
    short = fitting.with_capacities({**dict(fitting.capacities), name: float(densities[name]) / 2})
    with pytest.warns(RuntimeWarning, match=name):
        (value, _), grads = value_and_grad(*make(short))
        jax.effects_barrier()
    assert np.isfinite(value)
    assert np.all(np.isnan(grads[name]["conv1"]["kernel"]))
    assert np.all(np.isnan(grads["stem_conv"]["kernel"]))  # as everything before that block
    assert_same(value_and_grad(*make(short.exact))[1], wanted()[1], 2e-6)


def test_compiled_bytes_of_a_deep_network():
    """Bounds temporaries relative to `none`: at this depth residuals dominate."""

    def temporaries(remat):
        model = tiny_resnet(stage_sizes=(10,), channels=8, remat=remat)
        x = jax.ShapeDtypeStruct((64, 16, 16, 3), jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), x)

        def loss(params, state, x, key):
            logits, updated = model.apply(
                {"params": params, **state},
                x,
                train=True,
                mutable=list(state),
                rngs={"quantize": key},
            )
            return jnp.sum(jnp.sin(logits)), updated

        state = {"batch_stats": variables["batch_stats"]}
        compiled = compiled_memory(
            jax.jit(jax.grad(loss, has_aux=True)), variables["params"], state, x, jax.random.key(0)
        )
        return compiled.temporary_bytes

    plain = temporaries(NO_REMAT)
    assert temporaries(RematSpec("blocks")) < 0.75 * plain
    assert temporaries(RematSpec("bitmap_blocks", 0.5)) < 0.6 * plain
    assert temporaries(RematSpec("quantized_blocks")) < 0.5 * plain


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(ValueError, match="`remat` must be one of .*bitmap_units.*; got 'block'"):
        create_model("resnet10", num_classes=5, remat="block")
    with pytest.raises(TypeError, match="`remat` must be"):
        create_model("resnet10", num_classes=5, remat=True)
    with pytest.raises(ValueError, match="`preset` must be one of"):
        RematSpec("block")
    with pytest.raises(ValueError, match="`capacity` must be"):
        RematSpec("bitmap", 0.0)
    with pytest.raises(ValueError, match=r"`capacities\['a'\]` must be"):
        RematSpec("bitmap").with_capacities({"a": 1.5})
    with pytest.raises(ValueError, match="`margin` must be"):
        choose_capacities({}, margin=-1.0)


def test_functions_and_models_take_the_same_policies():
    x, params = jnp.linspace(-1.0, 1.0, 24).reshape(4, 6), jnp.ones((6, 3))

    def layer(w, x):
        return jnp.tanh(x @ w)

    def kept(policy):
        run = checkpoint(layer, policy=policy)
        residuals = jax.eval_shape(lambda w, x: jax.vjp(run, w, x)[1], params, x)
        return sorted(leaf.size for leaf in jax.tree.leaves(residuals))

    assert kept("blocks") == kept(RematSpec("blocks")) == kept(ResidualPolicy())
    assert kept(RematSpec("none")) == kept("none")
    options = {"num_classes": 3, "width": 0.1}
    named, given = (
        create_model("resnet10", remat=remat, **options) for remat in ("blocks", ResidualPolicy())
    )
    images = jnp.ones((2, 16, 16, 3))
    variables = jax.eval_shape(named.init, jax.random.key(0), images)

    def residuals(model):
        def loss(params):
            full = {**variables, "params": params}
            full = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), full) | {"params": params}
            return model.apply(full, images, train=True, mutable=["batch_stats"])[0].sum()

        kept = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], variables["params"])
        return sorted(leaf.size for leaf in jax.tree.leaves(kept))

    assert residuals(named) == residuals(given) != residuals(create_model("resnet10", **options))
