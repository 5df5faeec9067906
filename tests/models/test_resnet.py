"""ResNets: logits against the original code's in float64, shapes, dtypes and stems."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from mlg_jax import GenerationSpec, create_model
from mlg_jax.export import from_torch
from mlg_jax.layers import layer_records, total_penalty
from mlg_jax.models import BasicBlock, BottleneckBlock
from tests._models import tiny_resnet, variable_shapes
from tests._tolerances import X64, relative_error

PAPER = GenerationSpec.from_bits(2, 44, 3, 6, 3)


NUMBERS = ("x", "labels", "logits_eval", "logits_train", "loss_ce", "loss_ortho")


def flat(variables):
    return traverse_util.flatten_dict(variables, sep="/")


def imported(state):
    """The state dict of the original code as our variables, in float64."""
    model = create_model("resnet18", num_classes=10, generation=PAPER)
    shapes = variable_shapes(model)
    template = jax.tree.map(lambda s: np.empty(s.shape, np.float64), shapes)
    return from_torch(state, layer_records(model), template, architecture="resnet18")


@pytest.fixture
def original(reference):
    """The arrays of the reference file, and the state dict among them."""
    numbers = reference("resnet18_2_44_3_6_3")
    state = {k: v for k, v in numbers.items() if k not in NUMBERS and "/" not in k}
    return numbers, state


def make_model(dtype):
    return create_model(
        "resnet18",
        num_classes=10,
        generation=PAPER,
        weight_bits=8,
        implementation="generate",  # like the original code; compiles in a third of the time
        dtype=dtype,
    )


def test_resnet18_matches_the_original_in_float64(x64, original):
    numbers, state = original
    variables = imported(state)
    model = make_model(jnp.float64)
    x = jnp.asarray(numbers["x"].transpose(0, 2, 3, 1), jnp.float64)
    logits = jax.jit(model.apply)(variables, x)
    assert relative_error(logits, numbers["logits_eval"]) <= X64
    records = layer_records(model)

    def loss(params):
        logits, updated = model.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        labels = jnp.asarray(numbers["labels"])
        ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        ortho = total_penalty(records, params)
        return ce + 0.05 * ortho, (logits, ce, ortho, updated["batch_stats"])

    gradients, (logits, ce, ortho, stats) = jax.jit(jax.grad(loss, has_aux=True))(
        variables["params"]
    )
    assert relative_error(logits, numbers["logits_train"]) <= X64
    assert relative_error(ce, numbers["loss_ce"]) <= X64
    assert relative_error(ortho, numbers["loss_ortho"]) <= X64
    for kind, actual, count in [
        ("after", {"batch_stats": stats}, 40),
        ("grad", {"params": gradients}, 11),
    ]:
        given = {k.split("/")[1]: v for k, v in numbers.items() if k.startswith(f"{kind}/")}
        assert len(given) == count
        before, after = (flat(imported({**state, **new})) for new in ({}, given))
        changed = [path for path in after if not np.array_equal(before[path], after[path])]
        assert len(changed) == count
        for path in changed:
            assert relative_error(flat(actual)[path], after[path]) <= X64, path


def test_resnet18_in_float32_is_near_the_float64_logits(original):
    numbers, state = original
    variables = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), imported(state))
    x = jnp.asarray(numbers["x"].transpose(0, 2, 3, 1), jnp.float32)
    logits = jax.jit(make_model(None).apply)(variables, x)
    low = jax.jit(make_model(jnp.bfloat16).apply)(variables, x)
    # The float32 tanh may move a weight near a rounding threshold to another level.
    assert relative_error(logits, numbers["logits_eval"]) < 1e-3
    assert low.dtype == jnp.bfloat16
    assert relative_error(low, numbers["logits_eval"]) < 0.1


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
@pytest.mark.parametrize("stem, size", [("cifar", 16), ("imagenet", 32)])
def test_training_step_reaches_every_parameter(block, stem, size):
    model = tiny_resnet(GenerationSpec.from_bits(2, 6, 3, 6, 3), block=block, stem=stem)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, size, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    assert ("bias" in variables["params"]["classifier"]) == (stem == "imagenet")
    assert model.input_shape == (1, {"cifar": 32, "imagenet": 224}[stem], *model.input_shape[2:])

    def loss(params):
        logits, stats = model.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(logits**2), (logits, stats)

    gradients, (logits, _) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert logits.shape == (2, 4)
    assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in jax.tree.leaves(gradients))


def test_activation_bits_train():
    model = create_model("resnet18", num_classes=4, width=0.0625, activation_bits=4, weight_bits=4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)

    def loss(params):
        y, _ = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.mean(y**2)

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))
    assert np.any(gradients["stem_conv"]["kernel"] != 0)


def test_first_block_of_later_stages_halves_the_image_once():
    model = create_model("resnet34", num_classes=10)
    records = {r.name: r for r in layer_records(model) if r.kind == "conv"}
    strided = sorted(name for name, r in records.items() if r.strides == (2, 2))
    assert strided == [
        f"stage{s}_block1/{layer}" for s in (2, 3, 4) for layer in ("conv1", "shortcut_conv")
    ]
    assert len(records) == 1 + 2 * 16 + 3


def test_bottleneck_has_its_stride_in_the_spatial_convolution():
    model = create_model("resnet50", num_classes=10)
    records = {r.name: r for r in layer_records(model)}
    assert records["stage2_block1/conv1"].strides == (1, 1)
    assert records["stage2_block1/conv2"].strides == (2, 2)
    assert records["stage1_block1/shortcut_conv"].shape.out_channels == 256
