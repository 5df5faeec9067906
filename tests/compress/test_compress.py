"""Compression of a small network: measuring, fitting, distillation and rejected arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import GenerationSpec, create_model, fake_quantize, size_report
from mlg_jax._convolution import from_layout, to_layout
from mlg_jax.compress import (
    AllocationSpec,
    DistillationSpec,
    ProjectionSpec,
    allocate,
    compress,
    distill,
    estimate_statistics,
    fit_generated,
    measure_sensitivity,
    project_model,
)
from mlg_jax.kernels import rounded_kernel
from mlg_jax.layers import layer_params, layer_records
from tests._models import record_named, tiny_networks
from tests.engine import _trained

GRID = AllocationSpec(
    base_in=(0, 2), base_out=(0.25, 0.75), bits=(2, 4), num_measured=2, num_images=12
)
SPEC = GenerationSpec.from_bits(2, 6, 3, 6, 3)
PLAIN = {"generation": None, "weight_bits": None, "activation_bits": None}


@pytest.fixture(scope="module")
def network():
    """An ordinary network with random weights and matching statistics, and its images."""
    with tiny_networks():
        model, variables = _trained.trained("tiny", **PLAIN)
        images = jnp.asarray(_trained.images(16))
        yield model, estimate_statistics(model, variables, images), images


@pytest.fixture(scope="module")
def measured(network):
    return measure_sensitivity(*network, spec=GRID)


def divergence(p_logits, q_logits):
    """Mean Kullback-Leibler divergence in float64."""
    p, q = (np.asarray(logits, np.float64) for logits in (p_logits, q_logits))
    log_p, log_q = (v - np.log(np.sum(np.exp(v), -1, keepdims=True)) for v in (p, q))
    return np.mean(np.sum(np.exp(log_p) * (log_p - log_q), -1))


def batch_logits(model, variables, images):
    return model.apply(variables, images, train=True, mutable=["batch_stats"])[0]


@pytest.mark.parametrize("name", ["stem_conv", "stage2_block1/conv2"])
def test_harm_is_the_divergence_of_the_network_with_one_kernel_replaced(network, measured, name):
    model, variables, images = network
    record = record_named(model, name)
    kernel = np.asarray(from_layout(layer_params(variables["params"], record)["kernel"]))
    before = batch_logits(model, variables, images[:12])
    (layer,) = (row for row in measured.layers if row.name == name)
    generated = [c for c in layer.choices if c.generation is not None]
    for choice in (generated[0], generated[-1]):
        rounded = rounded_kernel(kernel, choice.generation, record.shape)
        params = jax.tree.map(lambda v: v, variables["params"])
        layer_of(params, record)["kernel"] = to_layout(jnp.asarray(rounded), record.shape)
        after = batch_logits(model, {**variables, "params": params}, images[:12])
        assert choice.kl == pytest.approx(divergence(before, after), rel=1e-4)
        error = np.sum((rounded - kernel) ** 2) / np.sum(kernel**2)
        assert choice.error == pytest.approx(error, abs=1e-5)
    assert generated[0].kl > 10 * layer.choices[-1].kl  # the ordinary kernel at 8 bits
    assert layer.choices[-1].generation is None
    inside = [c.kl for c in generated[1:-1]]
    assert all(generated[-1].kl <= h <= generated[0].kl for h in inside)


def layer_of(params, record):
    for name in record.path:
        params = params[name]
    return params


def test_allocations_are_as_large_as_the_size_report_says(network, measured):
    model, variables, _ = network
    smallest = measured.fixed_bits + sum(row.choices[0].num_bits for row in measured.layers)
    harms = []
    for kb in np.linspace(smallest / 8192 + 1e-6, 12.0, 5):
        allocation = allocate(measured, target_kb=kb)
        small = create_model(
            "tiny",
            num_classes=4,
            width=0.25,
            generation=allocation.generation,
            weight_bits=allocation.weight_bits,
        )
        image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        shapes = jax.eval_shape(small.init, jax.random.key(0), image)
        assert size_report(small, shapes).kb == allocation.kb <= kb
        harms.append(allocation.kl)
    assert harms == sorted(harms, reverse=True) and harms[0] > harms[-1]


@pytest.mark.slow
def test_distillation_brings_a_compressed_network_closer(network, measured):
    model, variables, images = network
    spec = DistillationSpec(num_epochs=60, batch_size=16, learning_rate=1e-2)
    small = compress(
        *network, target_kb=1.9, key=jax.random.key(0), allocation=GRID, distillation=spec
    )
    assert size_report(small.model, small.variables).kb == small.allocation.kb <= 1.9
    assert small.allocation == allocate(measured, target_kb=1.9)
    start = fit_generated(
        *network, generation=small.allocation.generation, weight_bits=8, key=jax.random.key(0)
    )
    wanted = model.apply(variables, images)
    before = divergence(wanted, start[0].apply(start[1], images))
    assert divergence(wanted, small.model.apply(small.variables, images)) < 0.5 * before


@pytest.fixture(scope="module")
def fitted(network):
    """The network fitted by least squares, starting from the closed form."""
    spec = ProjectionSpec(num_steps=40, learning_rate=1e-3)
    return fit_generated(
        *network, generation=SPEC, weight_bits=8, projection=spec, key=jax.random.key(0)
    )


def test_fitted_networks_hold_the_classifier(network, fitted):
    small, variables = fitted
    record = record_named(small, "classifier")
    kernel = layer_params(variables["params"], record)["kernel"]
    held = fake_quantize(kernel, record.kernel.spec.quant)
    original = layer_params(network[1]["params"], record)["kernel"]
    step = 2 * float(jnp.max(jnp.abs(original))) / 255
    np.testing.assert_allclose(held, original, atol=step / 2 + 1e-6)


def test_running_statistics_are_averages_over_the_images(network, fitted):
    """All images form one batch, so its statistics are the same in each of the 40 steps."""
    small, variables = fitted
    _, updated = small.apply(variables, network[2], train=True, mutable=["batch_stats"])
    leaves = (jax.tree.leaves(s["batch_stats"]) for s in (network[1], variables, updated))
    for old, new, once_more in zip(*leaves, strict=True):
        batch = (once_more - 0.9 * new) / 0.1
        wanted = 0.9**40 * old + (1 - 0.9**40) * batch
        np.testing.assert_allclose(new, wanted, rtol=1e-4, atol=1e-5)


def test_least_squares_goes_on_from_the_closed_form(network, fitted):
    small, variables = fitted
    record = record_named(small, "stage2_block1/conv2")
    factors = record.kernel.quantize(layer_params(variables["params"], record))
    built = from_layout(record.kernel.build(factors))
    params = layer_params(network[1]["params"], record_named(network[0], record.name))
    target = np.asarray(from_layout(params["kernel"]))
    closed = rounded_kernel(target, SPEC, record.shape)
    assert np.sum((built - target) ** 2) < np.sum((closed - target) ** 2)


def test_a_projection_starts_from_the_factors_given(network, fitted):
    small, options = fitted[0], {"key": jax.random.key(0), "spec": ProjectionSpec(method="svd")}
    options["input_shape"] = (1, 16, 16, 3)
    start = {
        r.name: {f.name: np.full(f.shape, 0.1 * i, np.float32) for f in r.factors}
        for i, r in enumerate(layer_records(small, (1, 16, 16, 3)))
        if "basis" in r.factor_names
    }
    params = project_model(small, network[1], start=start, **options).variables["params"]
    for name, factors in start.items():
        found = layer_params(params, record_named(small, name))
        assert all(np.array_equal(found[n], v) for n, v in factors.items())
    with pytest.raises(ValueError, match=r"`start` must have factors of shapes .* for .*; got {}"):
        project_model(small, network[1], start={}, **options)


@pytest.mark.bad_input
def test_bad_input(network):
    model, variables, images = network
    key = jax.random.key(0)

    def run(model=model, variables=variables, images=images, **options):
        return compress(model, variables, images, key=key, **{"target_kb": 9.0, **options})

    with pytest.raises(ValueError, match=r"`images` must hold at least one .*; got shape \(0, 16,"):
        run(images=images[:0])
    with pytest.raises(TypeError, match="`images` must have a floating-point dtype; got uint8"):
        run(images=_trained.pixels(2))
    with pytest.raises(ValueError, match="`target_kb` must be at least .*, the smallest reachable"):
        run(target_kb=0.1, allocation=GRID)
    with pytest.raises(
        ValueError, match="`model` must have ordinary kernels .* classifier has Ordinary.*bits=8"
    ):
        run(model=_trained.trained("tiny")[0])
    with pytest.raises(ValueError, match="`variables` must hold the parameters of layer .*missing"):
        run(variables={"params": {}})
    broken = jax.tree.map(lambda v: v * np.nan, variables)
    with pytest.raises(ValueError, match="`variables` must be finite; got a NaN or an infinity"):
        run(variables=broken)
    with pytest.raises(ValueError, match=r"`batch_size` must be an integer in \[1, 16\]; got 128"):
        distill(model, variables, model, variables, images, key=key)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_epochs": 0}, "`num_epochs` must be an integer >= 1; got 0"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1; got 0"),
        ({"learning_rate": 0.0}, "`learning_rate` must be a number in .*; got 0.0"),
        ({"temperature": -1.0}, "`temperature` must be a number in .*; got -1.0"),
    ],
)
def test_bad_distillations(options, message):
    with pytest.raises(ValueError, match=message):
        DistillationSpec(**options)
