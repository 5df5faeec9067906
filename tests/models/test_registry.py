"""Creating models by name: every option takes effect; every invalid one is named in the error."""

import jax
import jax.numpy as jnp
import pytest

from mlg_jax import GenerationSpec, QuantSpec, create_model
from mlg_jax.kernels import OrdinarySpec
from mlg_jax.layers import layer_records
from mlg_jax.models import MODELS

SMALL = {"num_classes": 4, "width": 0.125}


@pytest.mark.parametrize(
    "name, num_convs",
    [
        (n, c)
        for n, c in zip(
            ["resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"],
            [12, 20, 36, 53, 104, 155],
            strict=True,
        )
    ],
)
def test_depth(name, num_convs):
    records = layer_records(create_model(name, **SMALL))
    assert sum(r.kind == "conv" for r in records) == num_convs
    assert sum(r.kind == "norm" for r in records) == num_convs


def test_generation_by_pattern():
    late = GenerationSpec(2, 6)
    model = create_model(
        "resnet18",
        **SMALL,
        generation={"stem*": None, "stage4_*/conv?": late, "*": GenerationSpec(2, 3)},
    )
    specs = {r.name: r.kernel.spec for r in layer_records(model) if r.kind == "conv"}
    assert specs["stem_conv"] == OrdinarySpec()
    assert specs["stage4_block1/conv2"] == late
    assert specs["stage1_block1/conv1"] == GenerationSpec(2, 3)


def test_width_scales_channels():
    records = {
        r.name: r for r in layer_records(create_model("resnet18", num_classes=4, width=0.25))
    }
    assert records["stem_conv"].shape.out_channels == 16
    assert records["stage4_block2/conv2"].shape.out_channels == 128


def test_weight_and_activation_bits_reach_the_layers():
    model = create_model("resnet18", **SMALL, weight_bits=8, activation_bits=4)
    records = {r.name: r for r in layer_records(model)}
    assert records["classifier"].factors[0].quant.bits == 8
    assert records["stem_conv"].kernel.spec == OrdinarySpec(QuantSpec(8))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    stats = variables["batch_stats"]
    assert "input_quant" in stats["stem_conv"] and "input_quant" in stats["classifier"]


def test_equal_arguments_make_equal_models():
    options = SMALL | {"generation": GenerationSpec(2, 6), "weight_bits": 8}
    first, second = create_model("resnet18", **options), create_model("resnet18", **options)
    assert first == second and hash(first) == hash(second)
    assert first != create_model("resnet18", **(options | {"weight_bits": 7}))


def test_classifier_starts_with_its_fan_in():
    model = create_model("resnet10", num_classes=1000, generation=GenerationSpec(2, 6))
    record = next(r for r in layer_records(model) if r.name == "classifier")
    assert record.kernel.spec.fan == "in"
    kernel = record.kernel.init(jax.random.key(0), jnp.float32)["kernel"]
    assert float(kernel.std()) == pytest.approx((2 / 512) ** 0.5, rel=0.01)


def test_float64_parameters_in_x64_mode(x64):
    model = create_model("resnet10", **SMALL, dtype=jnp.float64, activation_bits=8)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(variables)} - {jnp.dtype(bool)}
    assert dtypes == {jnp.dtype(jnp.float64)}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "name, options, error, message",
    [
        ("resnet18", {"dtype": "float33"}, TypeError, "`dtype` must be a .* got 'float33'"),
        (
            "resnet18",
            {"dtype": jnp.float64},
            ValueError,
            "jax_enable_x64 is set; got float64",
        ),
        (
            "resnet18",
            {"generation": {3: None}},
            TypeError,
            "`generation pattern` must be str; got 3",
        ),
        ("resnet19", {}, ValueError, r"`name` must be one of \['alexnet', .*got 'resnet19'"),
        (
            "resnet18",
            {"num_classes": 0},
            ValueError,
            "`num_classes` must be an integer >= 1; got 0",
        ),
        (
            "resnet18",
            {"stem": "mnist"},
            ValueError,
            r"`stem` must be one of \['cifar', 'imagenet'\]",
        ),
        ("resnet18", {"width": 0}, ValueError, r"`width` must be a number in \(0.0, inf\); got 0"),
        ("resnet18", {"weight_bits": 33}, ValueError, r"`bits` must be .*\[1, 16\]; got 33"),
        ("resnet18", {"activation_bits": 0}, ValueError, r"`bits` must be .*\[1, 16\]; got 0"),
        (
            "resnet18",
            {"generation": (2, 44)},
            TypeError,
            r"`generation` must be None or KernelSpec",
        ),
        ("resnet18", {"generation": {"stage9*": None}}, ValueError, "match a convolution .*stage9"),
        (
            "resnet18",
            {"generation": {"*": 3}},
            TypeError,
            "`generation.*` must be None or KernelSpec; got 3",
        ),
        (
            "resnet18",
            {"implementation": "quick"},
            ValueError,
            "`implementation` must be one of .*'quick'",
        ),
        ("resnet18", {"remat": "block"}, ValueError, "`remat` must be one of .*; got 'block'"),
        ("resnet18", {"dtype": jnp.int8}, TypeError, "`dtype` must be a floating-point dtype"),
    ],
)
def test_bad_options(name, options, error, message):
    with pytest.raises(error, match=message):
        create_model(name, **(SMALL | options))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "x, error, message",
    [
        (jnp.ones((1, 32, 32, 3), jnp.uint8), TypeError, "`x` must have a floating-point dtype"),
        (
            jnp.ones((32, 32, 3)),
            ValueError,
            r"`x` must have shape \[N, H, W, C\]; got \(32, 32, 3\)",
        ),
    ],
)
def test_bad_images(x, error, message):
    with pytest.raises(error, match=message):
        create_model("resnet18", **SMALL).init(jax.random.key(0), x)


def test_every_name_is_documented():
    assert all(name in create_model.__doc__ for name in MODELS)
