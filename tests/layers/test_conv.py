"""Convolution and dense layers: parameters, values, streams, dtypes, records."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import GenerationSpec, QuantSpec, fake_quantize
from mlg_jax.layers import Conv, Dense, DenseKernel, GeneratedKernel, layer_records
from mlg_jax.quant import ActivationSpec
from tests import _oracles
from tests._tolerances import relative_error

SPEC = GenerationSpec.from_bits(2, 8, 3, 6, 4)


def image(shape=(2, 7, 8, 12), seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


@pytest.mark.parametrize(
    "spec, kernel",
    [(SPEC, GeneratedKernel(SPEC)), (QuantSpec(4), DenseKernel(QuantSpec(4)))],
    ids=["generation", "quant"],
)
@pytest.mark.parametrize("layer", [Conv, Dense])
def test_a_spec_stands_for_its_kernel(layer, spec, kernel):
    x = image()
    variables = layer(16, kernel=kernel).init(jax.random.key(0), x)
    got = layer(16, kernel=spec).apply(variables, x)
    np.testing.assert_array_equal(got, layer(16, kernel=kernel).apply(variables, x))


def test_only_factors_and_bias_are_parameters():
    layer = Conv(16, kernel=GeneratedKernel(SPEC), use_bias=True)
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
    "options",
    [
        {},
        {"strides": (2, 2)},
        {"padding": ((0, 0), (2, 1))},
        {"dilation": (2, 1)},
        {"groups": 3, "features": 18},
        {"window": (1, 1), "strides": (2, 2)},
    ],
    ids=str,
)
def test_equals_the_oracle_with_the_quantised_kernel(x64, options):
    options = {"features": 16, "window": (3, 3)} | options
    x = image(dtype=jnp.float64)
    layer = Conv(**options, kernel=GeneratedKernel(SPEC), param_dtype=jnp.float64)
    variables = layer.init(jax.random.key(1), x)
    params = {n: np.asarray(v) for n, v in variables["params"].items()}
    bits = {"basis": 3, "coeff_in": 6, "coeff_out": 4}
    q = {n: _oracles.quantize(v, bits[n], "dorefa_sym") for n, v in params.items()}
    kernel = _oracles.generate(q["basis"], q.get("coeff_in"), q.get("coeff_out"))
    kernel = kernel.reshape(*kernel.shape[:2], *options["window"]).transpose(2, 3, 1, 0)
    half = tuple((k // 2, k // 2) for k in options["window"])
    expected = _oracles.convolve(
        x,
        kernel,
        options.get("strides", (1, 1)),
        options.get("padding", half),
        options.get("dilation", (1, 1)),
        options.get("groups", 1),
    )
    assert relative_error(layer.apply(variables, x), expected) < 1e-12


def test_even_input_with_stride_two_is_not_same_padding(x64):
    x, layer = image((1, 8, 8, 3), dtype=jnp.float64), Conv(4, strides=(2, 2))
    variables = layer.init(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    expected = _oracles.convolve(x, kernel, (2, 2), ((1, 1), (1, 1)))
    assert relative_error(layer.apply(variables, x), expected) < 1e-6


def test_dense_is_the_case_of_one_tap():
    x = image((5, 20))
    layer = Dense(10, kernel=GeneratedKernel(GenerationSpec.from_bits(0, 4, 8, None, 8)))
    variables = layer.init(jax.random.key(0), x)
    assert shapes(variables["params"]) == {"basis": (4, 20, 1), "coeff_out": (10, 4), "bias": (10,)}
    q = {n: fake_quantize(variables["params"][n], QuantSpec(8)) for n in ("basis", "coeff_out")}
    expected = x @ (q["coeff_out"] @ q["basis"][..., 0]).T
    assert relative_error(layer.apply(variables, x), expected) < 1e-5


def test_ordinary_kernel_is_quantised_as_a_whole():
    x = image()
    layer = Conv(6, kernel=DenseKernel(QuantSpec(4)))
    variables = layer.init(jax.random.key(0), x)
    quantised = {"params": {"kernel": fake_quantize(variables["params"]["kernel"], QuantSpec(4))}}
    assert np.array_equal(layer.apply(variables, x), Conv(6).apply(quantised, x))


def test_partial_quantisation_needs_the_stream_in_training_only():
    spec = GenerationSpec(2, 8, *(QuantSpec(2, ratio=0.5),) * 3)
    layer, x = Conv(16, kernel=GeneratedKernel(spec)), image()
    variables = layer.init(jax.random.key(0), x)
    rngs = {"quantize": jax.random.key(3)}
    trained = layer.apply(variables, x, train=True, rngs=rngs)
    evaluated = layer.apply(variables, x, rngs=rngs)
    assert not np.array_equal(trained, evaluated)
    assert np.array_equal(trained, layer.apply(variables, x, train=True, rngs=rngs))
    full = GenerationSpec(2, 8, *(QuantSpec(2),) * 3)
    assert np.array_equal(evaluated, Conv(16, kernel=GeneratedKernel(full)).apply(variables, x))


def test_input_quantiser_keeps_its_range_in_batch_stats():
    layer, x = Conv(4, input_quant=ActivationSpec(4)), image()
    variables = layer.init(jax.random.key(0), x)
    assert not variables["batch_stats"]["input_quant"]["range"]["is_set"]
    _, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    state = updated["batch_stats"]["input_quant"]["range"]
    assert state["is_set"] and state["minimum"] == x.min() and state["maximum"] == x.max()
    # before the first training batch evaluation takes the range of what it sees
    assert np.array_equal(layer.apply(variables, x), layer.apply({**variables, **updated}, x))
    # evaluation reads the range and does not move it; half the range changes the result
    ready = {**variables, **updated}
    y, after = layer.apply(ready, 3 * x, mutable=["batch_stats"])
    assert jax.tree.all(jax.tree.map(jnp.array_equal, after["batch_stats"], ready["batch_stats"]))
    assert relative_error(y, 3 * layer.apply(ready, x)) > 0.05


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_compute_dtype(dtype):
    layer = Conv(16, kernel=GeneratedKernel(SPEC), dtype=dtype)
    variables = layer.init(jax.random.key(0), image())
    assert {v.dtype for v in variables["params"].values()} == {jnp.dtype(jnp.float32)}
    y = layer.apply(variables, image())
    exact = Conv(16, kernel=GeneratedKernel(SPEC)).apply(variables, image())
    assert y.dtype == dtype
    assert relative_error(y, exact) < 4 * float(jnp.finfo(dtype).eps)


def test_gradient_reaches_every_factor():
    layer, x = Conv(16, kernel=GeneratedKernel(SPEC), use_bias=True), image()
    variables = layer.init(jax.random.key(0), x)
    gradients = jax.grad(lambda v: jnp.sum(layer.apply(v, x) ** 2))(variables)["params"]
    assert all(np.any(g != 0) for g in gradients.values()) and len(gradients) == 4


@pytest.mark.parametrize("mode", [False, True])
def test_the_layer_keeps_no_kernel_for_the_backward_pass(mode):
    layer, x = Conv(40, kernel=GeneratedKernel(SPEC)), image()
    variables = layer.init(jax.random.key(0), x)

    def run(variables, x):
        return jax.vjp(lambda v, x: layer.apply(v, x, train=mode), variables, x)[1]

    sizes = {leaf.size for leaf in jax.tree.leaves(jax.eval_shape(run, variables, x))}
    assert 40 * 12 * 9 not in sizes and max(sizes) == x.size


def test_record_describes_the_layer():
    layer = Conv(18, strides=(2, 2), groups=3, kernel=GeneratedKernel(SPEC), use_bias=True)
    (record,) = layer_records(layer, (1, 8, 8, 12))
    assert (record.kind, record.groups, record.strides) == ("conv", 3, (2, 2))
    assert record.kernel.layout == (3, 3, 4, 18)
    assert record.factor_names == ("basis", "coeff_in", "coeff_out", "bias")
    num_params = 8 * 2 * 9 + 8 * 4 * 2 + 18 * 8 + 18
    assert record.num_params == num_params
    assert record.num_bits == 8 * 2 * 9 * 3 + 8 * 4 * 2 * 6 + 18 * 8 * 4 + 18 * 32
    assert record.num_dense_params == 3 * 3 * 4 * 18 + 18


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "layer, x, error, message",
    [
        (Conv(4, groups=0), jnp.ones((1, 8, 8, 3)), ValueError, "`groups` must be .* >= 1; got 0"),
        (Conv(4, strides=(0, 1)), jnp.ones((1, 8, 8, 3)), ValueError, "`strides` must be .* got 0"),
        (
            Conv(4, strides=2),
            jnp.ones((1, 8, 8, 3)),
            TypeError,
            "`strides` must be a tuple .*got 2",
        ),
        (Conv(4, dilation=(1, 0)), jnp.ones((1, 8, 8, 3)), ValueError, "`dilation` must .* got 0"),
        (Conv(4, window=3), jnp.ones((1, 8, 8, 3)), TypeError, "`window` must be a tuple .* got 3"),
        (
            Conv(4, window=(9, 9), padding=((0, 0), (0, 0))),
            jnp.ones((1, 8, 8, 3)),
            ValueError,
            r"`window` must not exceed the padded image \(8, 8\); got \(9, 9\)",
        ),
        (Conv(4, padding="SAME"), jnp.ones((1, 8, 8, 3)), TypeError, "`padding` must be .*'SAME'"),
        (
            Conv(4, padding=((-1, 0), (0, 0))),
            jnp.ones((1, 8, 8, 3)),
            ValueError,
            "`padding` must be an integer >= 0; got -1",
        ),
        (Conv(4, kernel="mlg"), jnp.ones((1, 8, 8, 3)), TypeError, "`kernel` must be KernelChoice"),
        (Conv(4, input_quant=4), jnp.ones((1, 8, 8, 3)), TypeError, "`input_quant` must be Activ"),
        (Conv(4), [[1.0]], TypeError, r"`x` must be an array; got \[\[1\.0\]\]"),
        (Dense(4), jnp.float32(1), ValueError, r"`x` must have shape \[..., C\]; got \(\)"),
        (Conv(4), jnp.ones((1, 8, 8, 3), jnp.uint8), TypeError, "`x` must have a floating-point"),
        (Conv(4), jnp.ones((8, 8, 3)), ValueError, r"`x` must have shape \[N, H, W, C\]; got \(8"),
        (Conv(0), jnp.ones((1, 8, 8, 3)), ValueError, "`features` must be an integer >= 1; got 0"),
        (
            Conv(4, groups=2),
            jnp.ones((1, 8, 8, 3)),
            ValueError,
            "`groups` must divide .* 3 .*got 2",
        ),
        (
            Conv(4, implementation="fast"),
            jnp.ones((1, 8, 8, 3)),
            ValueError,
            "`implementation` must be one of",
        ),
        (
            Dense(4),
            jnp.ones((2, 3), int),
            TypeError,
            "`x` must have a floating-point dtype; got int",
        ),
    ],
)
def test_bad_input(layer, x, error, message):
    with pytest.raises(error, match=message):
        layer.init(jax.random.key(0), x)


@pytest.mark.bad_input
def test_missing_stream_is_named():
    spec = GenerationSpec(2, 8, QuantSpec(2, ratio=0.5))
    layer, x = Conv(16, kernel=GeneratedKernel(spec)), image()
    variables = layer.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="`rngs` must hold 'quantize' to train"):
        layer.apply(variables, x, train=True)
