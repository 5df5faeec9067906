"""All networks that are not ResNets: published counts, forward passes and every option."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import GenerationSpec, create_model, size_report
from mlg_jax.kernels import GeneratedKernel, OrdinarySpec
from mlg_jax.layers import layer_records
from mlg_jax.models.mobilenet_v2 import divisible
from mlg_jax.quant import QuantSpec
from tests._models import variable_shapes
from tests._tolerances import X64, relative_error
from tests.models._definitions import forward

NAMES = ["vgg16", "alexnet", "squeezenet", "mobilenet_v2"]
STEMS = ["cifar", "imagenet"]
TINY = {"num_classes": 3, "width": 0.0625}
# Odd and even sizes near the minimum: at every pooling, some window does not fit.
SIZES = {
    ("vgg16", "cifar"): (33, 34),
    ("vgg16", "imagenet"): (32, 71),
    ("alexnet", "cifar"): (15, 20),
    ("alexnet", "imagenet"): (63, 72),
    ("squeezenet", "cifar"): (4, 9),
    ("squeezenet", "imagenet"): (17, 22),
    ("mobilenet_v2", "cifar"): (5, 8),
    ("mobilenet_v2", "imagenet"): (9, 16),
}
EVERY_STEM = [(name, stem) for name in NAMES for stem in STEMS]


def num_params(model):
    return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(model)["params"]))


def images(name, stem, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(2, *SIZES[name, stem], 3)).astype(dtype)


def drawn(model, x, dtype=np.float32):
    """Random variables, including the biases, norms and statistics."""
    shapes = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), x)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if path[-2:] == ("range", "is_set"):
            return np.zeros(leaf.shape, bool)
        if path[-1] in ("kernel", "basis", "coeff_in", "coeff_out"):
            return rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        if path[-1] in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape)
        return rng.normal(size=leaf.shape) * 0.1

    flat = flax.traverse_util.flatten_dict(shapes)
    values = {path: draw(path, leaf) for path, leaf in flat.items()}
    values = {path: v if v.dtype == bool else v.astype(dtype) for path, v in values.items()}
    return flax.traverse_util.unflatten_dict(values)


@pytest.mark.parametrize(
    "name, stem, num_classes, count",
    [
        # torchvision's published `num_params`.
        ("vgg16", "imagenet", 1000, 138_357_544),
        ("alexnet", "imagenet", 1000, 61_100_840),
        ("squeezenet", "imagenet", 1000, 1_235_496),
        ("mobilenet_v2", "imagenet", 1000, 3_504_872),
        # 13 convolutions: 14,710,464; norms: 2 * 4,224; classifier: 512 * 10 + 10.
        ("vgg16", "cifar", 10, 14_724_042),
        # The first kernel has 9 taps instead of 121, the grid 9 cells instead of 36, and there are
        # 10 classes instead of 1000.
        (
            "alexnet",
            "cifar",
            10,
            61_100_840 - 64 * 3 * 112 - 256 * 27 * 4096 - 990 * 4097,
        ),
        ("squeezenet", "cifar", 10, 1_235_496 - 990 * 513),
        ("mobilenet_v2", "cifar", 10, 3_504_872 - 990 * 1281),
    ],
)
def test_parameter_counts(name, stem, num_classes, count):
    model = create_model(name, num_classes=num_classes, stem=stem)
    assert model.input_shape == (1, {"cifar": 32, "imagenet": 224}[stem], *model.input_shape[2:])
    logits, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros(model.input_shape))
    )
    assert logits.shape == (1, num_classes)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    size = size_report(model, variables)
    assert size.num_params == count and size.ratio == 1.0


@pytest.mark.parametrize("name, stem", EVERY_STEM)
def test_logits_are_the_definitions(x64, name, stem):
    model = create_model(name, **TINY, stem=stem, dtype=jnp.float64)
    x = images(name, stem, np.float64)
    variables = drawn(model, x, np.float64)
    logits = jax.jit(model.apply)(variables, x)
    assert logits.dtype == jnp.float64
    assert relative_error(logits, forward(name, stem, variables, x)) <= X64


def gradients_of(model, variables, x):
    """A compiled function: seed of dropout -> ((loss, updated collections), gradients)."""
    state = {k: v for k, v in variables.items() if k != "params"}

    def loss(params, key):
        logits, updated = model.apply(
            {"params": params, **state},
            x,
            train=True,
            mutable=list(state),
            rngs={"dropout": key},
        )
        return jnp.sum(logits**2), updated

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return lambda seed: compiled(variables["params"], jax.random.key(seed))


@pytest.mark.parametrize(
    "name, stem",
    [
        ("vgg16", "imagenet"),
        ("alexnet", "cifar"),
        ("squeezenet", "cifar"),
        ("mobilenet_v2", "cifar"),
    ],
)
def test_training_draws_and_reaches_every_parameter(name, stem):
    # With one channel, a squeeze layer may be zero for all inputs.
    width = 0.25 if name == "squeezenet" else TINY["width"]
    model = create_model(name, num_classes=3, width=width, stem=stem)
    x = images(name, stem)
    variables = drawn(model, x)
    run = gradients_of(model, variables, x)
    (first, updated), gradients = run(1)
    assert first == run(1)[0][0] and first != run(2)[0][0]
    state = {k: v for k, v in variables.items() if k != "params"}
    assert jax.tree.structure(dict(updated)) == jax.tree.structure(state)
    flat = flax.traverse_util.flatten_dict(gradients, sep="/")
    assert all(np.all(np.isfinite(g)) for g in flat.values())
    # These biases shift the inputs of norms only and have no effect: their gradient is zero up to
    # rounding.
    without_effect = "project_norm/bias"
    assert not [path for path, g in flat.items() if not np.any(g) and without_effect not in path]


def test_training_with_generated_kernels_and_few_bits():
    spec = GenerationSpec.from_bits(2, 4, 4, 4, 4)
    model = create_model("alexnet", **TINY, generation=spec, weight_bits=8, activation_bits=8)
    x = images("alexnet", "cifar")
    (_, updated), gradients = gradients_of(model, drawn(model, x), x)(1)
    assert updated["batch_stats"]["hidden1"]["input_quant"]["range"]["is_set"]
    flat = flax.traverse_util.flatten_dict(gradients, sep="/")
    assert "stage3/conv3/coeff_in" in flat
    assert all(np.all(np.isfinite(g)) for g in flat.values())
    assert all(np.any(g) for path, g in flat.items() if "stage" in path)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_computed_from_float32_parameters(name):
    model = create_model(name, **TINY, dtype=jnp.bfloat16)
    variables = variable_shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    x = jax.ShapeDtypeStruct(model.input_shape, jnp.float32)
    assert jax.eval_shape(model.apply, variables, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["alexnet", "mobilenet_v2"])  # without and with norms
def test_bfloat16_is_near_the_definition(name):
    model = create_model(name, **TINY, dtype=jnp.bfloat16)
    x = images(name, "cifar")
    variables = drawn(model, x)
    logits = jax.jit(model.apply)(variables, x)
    # Up to 52 layers, each of which rounds to eight significant bits.
    assert relative_error(logits, forward(name, "cifar", variables, x)) < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_generation_leaves_dense_layers_and_depthwise_kernels(name):
    spec = GenerationSpec(2, 12)
    model = create_model(name, num_classes=10, generation=spec, weight_bits=8)
    for record in layer_records(model):
        if record.kind == "dense":
            assert record.kernel.spec == OrdinarySpec(QuantSpec(8), fan="in")
        elif record.kind == "conv":
            is_depthwise = record.groups > 1
            expected = OrdinarySpec(QuantSpec(8)) if is_depthwise else spec
            assert record.kernel.spec == expected, record.name
            assert is_depthwise == ("depthwise" in record.name)


def test_generation_by_pattern():
    model = create_model(
        "mobilenet_v2",
        num_classes=10,
        generation={
            "stage?_*/project_conv": GenerationSpec(0, 6),
            "stage7_*": GenerationSpec(0, 4),
        },
    )
    generated = {r.name for r in layer_records(model) if isinstance(r.kernel, GeneratedKernel)}
    assert len(generated) == 17 + 2
    assert "stage7_block1/expand_conv" in generated
    # Level 2 alone: nine taps are generated from four.
    assert "stage7_block1/depthwise_conv" in generated


@pytest.mark.parametrize(
    "name, layer, channels",
    [
        ("vgg16", "stage5/conv3", 128),
        ("vgg16", "hidden2", 1024),
        ("alexnet", "stage3/conv1", 96),
        ("alexnet", "hidden1", 1024),
        ("squeezenet", "fire2/squeeze_conv", 4),
        ("squeezenet", "fire9/expand3x3_conv", 64),
        ("mobilenet_v2", "stage7_block1/project_conv", 80),
        ("mobilenet_v2", "stage2_block1/project_conv", 8),
        ("mobilenet_v2", "head_conv", 1280),
    ],
)
def test_width_scales_channels(name, layer, channels):
    records = layer_records(create_model(name, num_classes=4, width=0.25, stem="imagenet"))
    found = next(r for r in records if r.name == layer)
    assert found.shape.out_channels == channels


@pytest.mark.parametrize(
    "channels, rounded", [(3, 8), (11, 16), (12, 16), (18, 24), (44, 48), (84, 88), (1792, 1792)]
)
def test_mobilenet_channels_are_multiples_of_eight(channels, rounded):
    assert divisible(channels) == rounded


@pytest.mark.parametrize("width, count", [(0.5, 1_968_680), (1.4, 6_108_776)])
def test_mobilenet_widths_have_the_published_sizes(width, count):
    model = create_model("mobilenet_v2", num_classes=1000, stem="imagenet", width=width)
    assert num_params(model) == count


@pytest.mark.parametrize("name", NAMES)
def test_equal_arguments_make_equal_models(name):
    assert create_model(name, **TINY) == create_model(name, **TINY)
    assert hash(create_model(name, **TINY)) == hash(create_model(name, **TINY))


@dataclasses.dataclass(frozen=True)
class Recorder:
    """A remat policy that records the segments it is applied to, and saves everything."""

    segments: list

    def stem(self, fn, name="stem", **_):
        return self._noting("stem", fn, name)

    def block(self, fn, name="", **_):
        return self._noting("block", fn, name)

    def unit(self, fn, name="", **_):
        return self._noting("unit", fn, name)

    def _noting(self, kind, fn, name):
        def run(module, x):
            self.segments.append((kind, "/".join((*module.path, *filter(None, [name])))))
            return fn(module, x)

        return run


@pytest.mark.parametrize(
    "name, num_blocks, num_units",
    [("vgg16", 5, 13), ("alexnet", 3, 5), ("squeezenet", 9, 25), ("mobilenet_v2", 19, 52)],
)
def test_every_convolution_is_a_unit_within_a_block(name, num_blocks, num_units):
    segments = []
    model = create_model(name, **TINY)
    model = model.clone(layers=dataclasses.replace(model.layers, remat=Recorder(segments)))
    variable_shapes(model)
    assert len(set(segments)) == len(segments)
    kinds = [kind for kind, _ in segments]
    assert kinds[0] == "stem" and kinds.count("stem") == 1  # the segment that takes the image
    assert (1 + kinds.count("block"), kinds.count("unit")) == (num_blocks, num_units)


@pytest.mark.bad_input
@pytest.mark.parametrize("name, stem", EVERY_STEM)
def test_images_too_small(name, stem):
    minimum = {
        "vgg16": {"cifar": 32, "imagenet": 32},
        "alexnet": {"cifar": 15, "imagenet": 63},
        "squeezenet": {"cifar": 4, "imagenet": 17},
        "mobilenet_v2": {"cifar": 1, "imagenet": 1},
    }[name][stem]
    model = create_model(name, **TINY, stem=stem)
    key = jax.random.key(0)
    fits = jnp.zeros((1, minimum, minimum, 3))
    assert jax.eval_shape(lambda: model.init_with_output(key, fits)[0]).shape == (1, 3)
    message = f"images of at least {minimum} x {minimum} for stem '{stem}'; got {minimum - 1} x"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, key, jnp.zeros((1, minimum - 1, minimum, 3)))


@pytest.mark.bad_input
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "x, error, message",
    [
        (jnp.ones((1, 64, 64, 3), jnp.uint8), TypeError, "`x` must have a floating-point dtype"),
        (jnp.ones((64, 64, 3)), ValueError, r"`x` must have shape \[N, H, W, C\]; got \(64, 64"),
    ],
)
def test_bad_images(name, x, error, message):
    with pytest.raises(error, match=message):
        create_model(name, **TINY).init(jax.random.key(0), x)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", NAMES)
def test_unknown_stem(name):
    model = create_model(name, **TINY).clone(stem="mnist")
    with pytest.raises(ValueError, match=r"`stem` must be one of \['cifar', 'imagenet'\]"):
        model.init(jax.random.key(0), jnp.ones((1, 64, 64, 3)))
