"""The whole network against the original's float64 numbers, its shapes, dtypes and stems."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlg_jax import GenerationSpec, create_model
from mlg_jax.layers import layer_records, total_penalty
from mlg_jax.models import BasicBlock, BottleneckBlock
from tests._models import tiny_resnet
from tests._tolerances import X64, relative_error

PAPER = GenerationSpec.from_bits(2, 44, 3, 6, 3)


def ours(name):
    """Our path of a PyTorch module's name."""
    parts = name.split(".")
    if parts[0] in ("conv1", "bn1"):
        return ({"conv1": "stem_conv", "bn1": "stem_norm"}[parts[0]],)
    if parts[0] == "linear":
        return ("classifier",)
    stage, block = parts[0].removeprefix("layer"), int(parts[1]) + 1
    layer = {
        "conv1": "conv1",
        "conv2": "conv2",
        "bn1": "norm1",
        "bn2": "norm2",
        "shortcut": "shortcut_norm" if parts[-1] == "1" else "shortcut_conv",
    }[parts[2]]
    return (f"stage{stage}_block{block}", layer)


def convert(name, array, *, is_norm):
    """One PyTorch array as (collection, path, value)."""
    module, _, leaf = name.rpartition(".")
    path = ours(module)
    if leaf.startswith("running_"):
        return "batch_stats", (*path, leaf.removeprefix("running_")), array
    if leaf == "basis":
        return "params", (*path, "basis"), array.reshape(*array.shape[:2], -1)
    if leaf == "weight":
        new = (*path, "scale" if is_norm else "kernel")
        return "params", new, array if is_norm else array.T
    return "params", (*path, leaf), array


@pytest.fixture
def original(reference):
    """The reference file, its parameters as our variables, in float64."""
    numbers = reference("resnet18_2_44_3_6_3")
    extra = ("x", "labels", "logits_eval", "logits_train", "loss_ce", "loss_ortho")
    flat = {"params": {}, "batch_stats": {}}
    for name, array in numbers.items():
        if name in extra or name.startswith(("after/", "grad/")):
            continue
        is_norm = array.ndim == 1
        collection, path, value = convert(name, array, is_norm=is_norm)
        flat[collection][path] = value.astype(np.float64)
    variables = {c: flax.traverse_util.unflatten_dict(tree) for c, tree in flat.items()}
    return numbers, variables


def make_model(dtype):
    return create_model("resnet18", num_classes=10, generation=PAPER, weight_bits=8, dtype=dtype)


def test_resnet18_matches_the_original_in_float64(x64, original):
    numbers, variables = original
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
    num_stats = num_gradients = 0
    stats = flax.traverse_util.flatten_dict(stats)
    gradients = flax.traverse_util.flatten_dict(gradients)
    for name, array in numbers.items():
        kind, _, rest = name.partition("/")
        if kind == "after":
            _, path, value = convert(rest, array, is_norm=True)
            assert relative_error(stats[path], value) <= X64, rest
            num_stats += 1
        elif kind == "grad":
            _, path, value = convert(rest, array, is_norm=False)
            assert relative_error(gradients[path], value) <= X64, rest
            num_gradients += 1
    assert (num_stats, num_gradients) == (40, 11)


def test_resnet18_in_float32_is_near_the_float64_logits(original):
    numbers, variables = original
    variables = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), variables)
    x = jnp.asarray(numbers["x"].transpose(0, 2, 3, 1), jnp.float32)
    logits = jax.jit(make_model(None).apply)(variables, x)
    low = jax.jit(make_model(jnp.bfloat16).apply)(variables, x)
    # A quantised weight may fall on another level where float32 tanh meets an edge.
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
    assert records["stage1_block1/shortcut_conv"].kernel.out_channels == 256
