"""Convolution and dense layers: parameters, values, streams, dtypes, records."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mlg_jax import GenerationSpec, QuantSpec, fake_quantize
from mlg_jax.kernels import OrdinarySpec
from mlg_jax.layers import BatchNorm, Conv, Dense, layer_records
from mlg_jax.quant import ActivationSpec
from tests import _oracles
from tests._tolerances import CONTRACTION, relative_error

SPEC = GenerationSpec.from_bits(2, 8, 3, 6, 4)


def image(shape=(2, 7, 8, 12), seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


@pytest.mark.parametrize(
    "spec, kernel",
    [(SPEC, SPEC), (QuantSpec(4), OrdinarySpec(QuantSpec(4)))],
    ids=["generation", "quant"],
)
@pytest.mark.parametrize("layer", [functools.partial(Conv, kernel_size=(3, 3)), Dense])
def test_a_spec_stands_for_its_kernel(layer, spec, kernel):
    x = image()
    variables = layer(16, kernel=kernel).init(jax.random.key(0), x)
    got = layer(16, kernel=spec).apply(variables, x)
    np.testing.assert_array_equal(got, layer(16, kernel=kernel).apply(variables, x))


def test_only_factors_and_bias_are_parameters():
    layer = Conv(16, (3, 3), kernel=SPEC, use_bias=True)
    variables = layer.init(jax.random.key(0), image())
    assert shapes(variables) == {
        "params": {
            "basis": (8, 2, 9),
            "coeff_in": (8, 12, 2),
            "coeff_out": (16, 8),
            "bias": (16,),
        }
    }


@pytest.mark.parametrize(
    "options, pads",
    [
        ({}, ((1, 1), (1, 1))),
        ({"strides": 2}, ((1, 1), (0, 1))),  # for 7 x 8 pixels
        ({"strides": (2, 2), "padding": "SAME_LOWER"}, ((1, 1), (1, 0))),
        ({"padding": "VALID"}, ((0, 0), (0, 0))),
        ({"padding": 2}, ((2, 2), (2, 2))),
        ({"padding": [0, (2, 1)]}, ((0, 0), (2, 1))),
        ({"kernel_dilation": (2, 1)}, ((2, 2), (1, 1))),
        ({"feature_group_count": 3, "features": 18}, ((1, 1), (1, 1))),
        ({"kernel_size": 1, "strides": [2, 2]}, ((0, 0), (0, 0))),
        ({"kernel_size": (2, 3), "kernel_dilation": None}, ((0, 1), (1, 1))),
    ],
    ids=str,
)
def test_equals_the_oracle_with_the_quantised_kernel(x64, options, pads):
    options = {"features": 16, "kernel_size": (3, 3)} | options
    x = image(dtype=jnp.float64)
    layer = Conv(**options, kernel=SPEC, param_dtype=jnp.float64)
    variables = layer.init(jax.random.key(1), x)
    params = {n: np.asarray(v) for n, v in variables["params"].items()}
    bits = {"basis": 3, "coeff_in": 6, "coeff_out": 4}
    q = {n: _oracles.quantize(v, bits[n], "dorefa_sym") for n, v in params.items() if n in bits}
    kernel = _oracles.generate(q["basis"], q.get("coeff_in"), q.get("coeff_out"))
    size = options["kernel_size"]
    size = (size, size) if isinstance(size, int) else size
    kernel = kernel.reshape(*kernel.shape[:2], *size).transpose(2, 3, 1, 0)
    strides = options.get("strides", 1)
    strides = (strides, strides) if isinstance(strides, int) else tuple(strides)
    dilation = options.get("kernel_dilation") or (1, 1)
    expected = _oracles.convolve(
        x, kernel, strides, pads, dilation, options.get("feature_group_count", 1)
    )
    assert relative_error(layer.apply(variables, x), expected) < 1e-12


FLAX = [
    {},
    {"strides": 2, "padding": "VALID", "use_bias": False},
    {"strides": (2, 1), "padding": "SAME_LOWER"},
    {"padding": 2, "kernel_dilation": 2},
    {"padding": ((1, 0), (2, 1)), "feature_group_count": 3},
    {"padding": [1, 2], "feature_group_count": 12, "features": 24},
    {"padding": "CIRCULAR", "kernel_dilation": (2, 1)},
    {"padding": "REFLECT", "strides": (1, 2)},
    {"dtype": jnp.bfloat16, "bias_init": nn.initializers.ones_init()},
    {"precision": "highest", "param_dtype": jnp.bfloat16},
    {"precision": jax.lax.Precision.HIGH, "kernel_init": nn.initializers.ones_init()},
]


@pytest.mark.parametrize("options", FLAX, ids=" ".join)
@pytest.mark.parametrize("batch", [(2,), (), (2, 3)], ids=str)
def test_takes_the_place_of_flax_conv(options, batch):
    """The same parameters and outputs as Flax's layer, for every form of every argument."""
    options = {"features": 6, "kernel_size": (3, 3)} | options
    x = image((*batch, 7, 8, 12))
    ours, flax = Conv(**options), nn.Conv(**options)
    variables = flax.init(jax.random.key(0), x)
    for a, b in zip(
        *(jax.tree.leaves(m.init(jax.random.key(0), x)) for m in (ours, flax)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    expected, got = flax.apply(variables, x), ours.apply(variables, x)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert relative_error(got, expected) < (0.02 if got.dtype == jnp.bfloat16 else CONTRACTION)


@pytest.mark.parametrize(
    "options", [{}, {"use_bias": False}, {"dtype": jnp.bfloat16}, {"precision": "high"}], ids=str
)
def test_takes_the_place_of_flax_dense(options):
    x = image((2, 5, 12))
    ours, flax = Dense(6, **options), nn.Dense(6, **options)
    variables = flax.init(jax.random.key(0), x)
    np.testing.assert_array_equal(
        ours.init(jax.random.key(0), x)["params"]["kernel"], variables["params"]["kernel"]
    )
    got, expected = ours.apply(variables, x), flax.apply(variables, x)
    assert got.dtype == expected.dtype and relative_error(got, expected) < 0.02


def test_arguments_of_flax_come_first_and_in_its_order():
    """Positional arguments have the same meaning as in Flax."""
    for ours, flax in ((Conv, nn.Conv), (Dense, nn.Dense), (BatchNorm, nn.BatchNorm)):
        fields = [field.name for field in dataclasses.fields(flax)]
        left_out = ("promote_dtype", "conv_general_dilated", "dot_general", "parent", "name")
        wanted = [name for name in fields if not name.startswith(left_out)]
        assert [field.name for field in dataclasses.fields(ours)][: len(wanted)] == wanted


@pytest.mark.parametrize("implementation", ["generate", "factored_out", "factored"])
def test_the_precision_holds_in_both_passes(implementation):
    layer = Conv(
        16, (3, 3), kernel=SPEC, implementation=implementation, precision="highest", use_bias=False
    )
    variables = layer.init(jax.random.key(0), image())

    def loss(variables, x):
        return jnp.sum(layer.apply(variables, x) ** 2)

    text = jax.jit(jax.grad(loss, (0, 1))).lower(variables, image()).as_text()
    products = re.findall(r"stablehlo\.(?:dot_general|convolution).*", text)
    assert products and all("HIGHEST" in product for product in products)


def test_the_mode_follows_from_what_can_change():
    """Plain Flax models do not pass `train`; mutable collections decide instead."""
    layer, x = Conv(4, (3, 3), input_quant=ActivationSpec(4)), image()
    variables = layer.init(jax.random.key(0), x)
    state = layer.apply(variables, x, mutable=["batch_stats"])[1]["batch_stats"]
    assert state["input_quant"]["range"]["is_set"]
    assert np.array_equal(layer.apply(variables, x), layer.apply(variables, x, train=False))


def test_dense_is_the_case_of_one_tap():
    x = image((5, 20))
    layer = Dense(10, kernel=GenerationSpec.from_bits(0, 4, 8, None, 8))
    variables = layer.init(jax.random.key(0), x)
    assert shapes(variables["params"]) == {"basis": (4, 20, 1), "coeff_out": (10, 4), "bias": (10,)}
    q = {n: fake_quantize(variables["params"][n], QuantSpec(8)) for n in ("basis", "coeff_out")}
    expected = x @ (q["coeff_out"] @ q["basis"][..., 0]).T
    assert relative_error(layer.apply(variables, x), expected) < 1e-5


def test_ordinary_kernel_is_quantised_as_a_whole():
    x = image()
    layer = Conv(6, (3, 3), use_bias=False, kernel=OrdinarySpec(QuantSpec(4)))
    variables = layer.init(jax.random.key(0), x)
    quantised = {"params": {"kernel": fake_quantize(variables["params"]["kernel"], QuantSpec(4))}}
    plain = Conv(6, (3, 3), use_bias=False)
    assert np.array_equal(layer.apply(variables, x), plain.apply(quantised, x))


def test_partial_quantisation_needs_the_stream_in_training_only():
    spec = GenerationSpec(2, 8, *(QuantSpec(2, ratio=0.5),) * 3)
    layer, x = Conv(16, (3, 3), kernel=spec), image()
    variables = layer.init(jax.random.key(0), x)
    rngs = {"quantize": jax.random.key(3)}
    trained = layer.apply(variables, x, train=True, rngs=rngs)
    evaluated = layer.apply(variables, x, train=False, rngs=rngs)
    assert not np.array_equal(trained, evaluated)
    assert np.array_equal(trained, layer.apply(variables, x, train=True, rngs=rngs))
    full = GenerationSpec(2, 8, *(QuantSpec(2),) * 3)
    assert np.array_equal(evaluated, Conv(16, (3, 3), kernel=full).apply(variables, x))


def test_input_quantiser_keeps_its_range_in_batch_stats():
    layer, x = Conv(4, (3, 3), input_quant=ActivationSpec(4)), image()
    variables = layer.init(jax.random.key(0), x)
    assert not variables["batch_stats"]["input_quant"]["range"]["is_set"]
    _, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    state = updated["batch_stats"]["input_quant"]["range"]
    assert state["is_set"] and state["minimum"] == x.min() and state["maximum"] == x.max()
    # before the first training batch, evaluation uses the range of its own input
    assert np.array_equal(layer.apply(variables, x), layer.apply({**variables, **updated}, x))
    # evaluation uses the stored range and does not update it; inputs outside the range are clipped
    ready = {**variables, **updated}
    y, after = layer.apply(ready, 3 * x, train=False, mutable=["batch_stats"])
    assert jax.tree.all(jax.tree.map(jnp.array_equal, after["batch_stats"], ready["batch_stats"]))
    assert relative_error(y, 3 * layer.apply(ready, x)) > 0.05


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_compute_dtype(dtype):
    layer = Conv(16, (3, 3), kernel=SPEC, dtype=dtype)
    variables = layer.init(jax.random.key(0), image())
    assert {v.dtype for v in variables["params"].values()} == {jnp.dtype(jnp.float32)}
    y = layer.apply(variables, image())
    exact = Conv(16, (3, 3), kernel=SPEC).apply(variables, image())
    assert y.dtype == dtype
    assert relative_error(y, exact) < 4 * float(jnp.finfo(dtype).eps)


def test_gradient_reaches_every_factor():
    layer, x = Conv(16, (3, 3), kernel=SPEC, use_bias=True), image()
    variables = layer.init(jax.random.key(0), x)
    gradients = jax.grad(lambda v: jnp.sum(layer.apply(v, x) ** 2))(variables)["params"]
    assert all(np.any(g != 0) for g in gradients.values()) and len(gradients) == 4


@pytest.mark.parametrize("mode", [False, True])
def test_the_layer_keeps_no_kernel_for_the_backward_pass(mode):
    layer, x = Conv(40, (3, 3), kernel=SPEC), image()
    variables = layer.init(jax.random.key(0), x)

    def run(variables, x):
        return jax.vjp(lambda v, x: layer.apply(v, x, train=mode), variables, x)[1]

    sizes = {leaf.size for leaf in jax.tree.leaves(jax.eval_shape(run, variables, x))}
    assert 40 * 12 * 9 not in sizes and max(sizes) == x.size


def test_record_describes_the_layer():
    layer = Conv(18, (3, 3), strides=(2, 2), feature_group_count=3, kernel=SPEC, use_bias=True)
    (record,) = layer_records(layer, (1, 8, 8, 12))
    assert (record.kind, record.groups, record.strides) == ("conv", 3, (2, 2))
    assert record.shape.layout == (3, 3, 4, 18)
    assert record.factor_names == ("basis", "coeff_in", "coeff_out", "bias")
    num_params = 8 * 2 * 9 + 8 * 4 * 2 + 18 * 8 + 18
    assert record.num_params == num_params
    assert record.num_bits == 8 * 2 * 9 * 3 + 8 * 4 * 2 * 6 + 18 * 8 * 4 + 18 * 32
    assert record.num_dense_params == 3 * 3 * 4 * 18 + 18


IMAGE = jnp.ones((1, 8, 8, 3))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"feature_group_count": 0}, ValueError, "`feature_group_count` must be .* >= 1; got 0"),
        ({"feature_group_count": 2}, ValueError, "`feature_group_count` must divide .* 3 .*got 2"),
        ({"strides": (0, 1)}, ValueError, "`strides` must be .* got 0"),
        ({"strides": (2, 2, 2)}, TypeError, r"`strides` must be a tuple .*got \(2, 2, 2\)"),
        ({"kernel_dilation": (1, 0)}, ValueError, "`kernel_dilation` must .* got 0"),
        ({"kernel_size": (3, 0)}, ValueError, "`kernel_size` must be an integer >= 1; got 0"),
        ({"kernel_size": 3.0}, TypeError, "`kernel_size` must be an integer >= 1; got 3.0"),
        (
            {"kernel_size": (9, 9), "padding": "VALID"},
            ValueError,
            r"`kernel_size` must not exceed the padded image \(8, 8\); got \(9, 9\)",
        ),
        ({"padding": "SMAE"}, ValueError, r"`padding` must be one of \['SAME', .*; got 'SMAE'"),
        ({"padding": (1, 1, 1)}, ValueError, "`padding` must be given for two axes, .*1, 1, 1"),
        ({"padding": ((-1, 0), (0, 0))}, ValueError, "`padding` must be an integer >= 0; got -1"),
        ({"input_dilation": 2}, ValueError, "`input_dilation` must be 1; got 2"),
        ({"mask": 0}, ValueError, "`mask` must be None; got 0"),
        ({"precision": ("high", "highest")}, ValueError, "`precision` must be the same .*high"),
        ({"kernel": "mlg"}, TypeError, "`kernel` must be KernelSpec or QuantSpec; got 'mlg'"),
        ({"input_quant": 4}, TypeError, "`input_quant` must be ActivationSpec; got 4"),
        ({"features": 0}, ValueError, "`features` must be an integer >= 1; got 0"),
        ({"implementation": "fast"}, ValueError, "`implementation` must be one of .*; got 'fast'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        Conv(**{"features": 4, "kernel_size": (3, 3)} | options).init(jax.random.key(0), IMAGE)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "layer, x, error, message",
    [
        (Conv(4, 3), [[1.0]], TypeError, r"`x` must be an array; got \[\[1\.0\]\]"),
        (Conv(4, 3), IMAGE.astype(jnp.uint8), TypeError, "`x` must have a floating-point"),
        (Conv(4, 3), IMAGE[0, 0], ValueError, r"`x` must have shape \[..., H, W, C\]; got \(8"),
        (Dense(4), jnp.float32(1), ValueError, r"`x` must have shape \[..., C\]; got \(\)"),
        (Dense(4), jnp.ones((2, 3), int), TypeError, "`x` must have a floating-point .* got int"),
    ],
)
def test_bad_inputs(layer, x, error, message):
    with pytest.raises(error, match=message):
        layer.init(jax.random.key(0), x)


@pytest.mark.bad_input
def test_missing_stream_is_named():
    spec = GenerationSpec(2, 8, QuantSpec(2, ratio=0.5))
    layer, x = Conv(16, (3, 3), kernel=spec), image()
    variables = layer.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="`rngs` must hold 'quantize' to train"):
        layer.apply(variables, x, train=True)
