"""All implementations are the same function, save only x and the factors, and build no kernel."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlg_jax import GenerationSpec
from mlg_jax._types import KernelShape, LayerGeometry
from mlg_jax.generation import _factored
from tests import _oracles
from tests._devices import assert_on_four_devices
from tests._models import apply_generated
from tests._tolerances import CONTRACTION, X64, relative_error

IMPLEMENTATIONS = ("generate", "factored_out", "factored")
RECORD = LayerGeometry(("layer",), "conv", KernelShape(40, 24, (3, 3)), padding=((1, 1), (1, 1)))
SPEC = GenerationSpec(2, 10)


def factors_of(record, spec, seed=0, dtype=np.float64):
    rng, shapes = np.random.default_rng(seed), spec.resolve(record.shape)
    fields = zip(shapes._fields, shapes, strict=True)
    return {n: rng.normal(size=s).astype(dtype) for n, s in fields if s is not None}


def image(record, size=(7, 6), batch=6, dtype=np.float64):
    rng = np.random.default_rng(9)
    return rng.normal(size=(batch, *size, record.shape.in_channels * record.groups)).astype(dtype)


def pulled(implementation, record):
    """(factors, x, cotangent) -> output and all gradients."""

    def run(factors, x, cotangent):
        layer = functools.partial(apply_generated, implementation, layer=record)
        y, pull = jax.vjp(layer, factors, x)
        return y, pull(cotangent)

    return run


def oracle(record, factors, x):
    kernel = _oracles.generate(factors["basis"], factors.get("coeff_in"), factors.get("coeff_out"))
    window = record.shape.window or (1, 1)
    kernel = kernel.reshape(*kernel.shape[:2], *window).transpose(2, 3, 1, 0)
    padding = record.padding or ((0, 0), (0, 0))
    return _oracles.convolve(x, kernel, record.strides, padding, record.dilation, record.groups)


@st.composite
def layers(draw):
    small = st.integers(1, 3)
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    window = draw(st.sampled_from(((1, 1), (3, 3), (2, 3))))
    kernel = KernelShape(groups * draw(st.sampled_from((2, 4))), draw(st.integers(1, 5)), window)
    pair = st.tuples(st.integers(0, 2), st.integers(0, 2))
    record = LayerGeometry(
        ("layer",),
        "conv",
        kernel,
        groups=groups,
        strides=draw(st.tuples(small, small)),
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        padding=draw(st.tuples(pair, pair)),
    )
    return record, GenerationSpec(draw(st.integers(0, 2)), draw(st.integers(0, 5)))


@settings(max_examples=6)
@given(layers(), st.sampled_from((2**21, 1)))
def test_implementations_are_one_function(layer, part_bytes):
    record, spec = layer
    assume(spec.resolve(record.shape) is not None)
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_factored, "PART_BYTES", part_bytes)
        factors, x = factors_of(record, spec), image(record)
        expected = oracle(record, factors, x)
        cotangent = np.random.default_rng(3).normal(size=expected.shape)
        results = {e: jax.jit(pulled(e, record))(factors, x, cotangent) for e in IMPLEMENTATIONS}
    for y, gradients in results.values():
        assert relative_error(y, expected) < X64
        wanted = jax.tree.leaves(results["generate"][1])
        for got, want in zip(jax.tree.leaves(gradients), wanted, strict=True):
            assert relative_error(got, want) < X64


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_float32(implementation):
    factors, x = factors_of(RECORD, SPEC, dtype=np.float32), image(RECORD, dtype=np.float32)
    expected = oracle(RECORD, factors, x)
    y, gradients = jax.jit(pulled(implementation, RECORD))(factors, x, np.ones_like(expected, "f4"))
    assert relative_error(y, expected) < CONTRACTION
    wanted = jax.jit(pulled("generate", RECORD))(factors, x, np.ones_like(expected, "f4"))[1]
    for got, want in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        assert relative_error(got, want) < CONTRACTION


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
def test_gradients_numerically_to_second_order(x64, implementation, monkeypatch):
    monkeypatch.setattr(_factored, "PART_BYTES", 1)
    kernel = KernelShape(6, 4, (2, 2))
    record = LayerGeometry(("layer",), "conv", kernel, strides=(2, 1), padding=((1, 0), (2, 1)))
    layer = jax.jit(functools.partial(apply_generated, implementation, layer=record))
    args = (factors_of(record, GenerationSpec(2, 3)), image(record, (5, 4), batch=2))
    args = jax.tree.map(jnp.asarray, args)
    jax.test_util.check_grads(layer, args, order=2, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
def test_dense_layers_of_any_rank(x64, implementation):
    record = LayerGeometry(("layer",), "dense", KernelShape(7, 9))
    factors = factors_of(record, GenerationSpec(0, 4))
    for shape in ((9,), (5, 9), (2, 3, 9)):
        x = np.random.default_rng(0).normal(size=shape)
        expected = x @ _oracles.generate(factors["basis"], None, factors["coeff_out"])[..., 0].T
        y, gradients = pulled(implementation, record)(
            factors, jnp.asarray(x), jnp.asarray(expected)
        )
        wanted = pulled("generate", record)(factors, jnp.asarray(x), jnp.asarray(expected))
        assert relative_error(y, expected) < X64
        for got, want in zip(*map(jax.tree.leaves, (gradients, wanted[1])), strict=True):
            assert relative_error(got, want) < X64


def sizes_in(program):
    """The numbers of entries of all arrays in a compiled program."""
    shapes = re.findall(r"\b(?:f32|f64|bf16)\[([\d,]+)\]", program.as_text())
    return {math.prod(map(int, shape.split(","))) for shape in shapes}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_compiled_program_has_no_array_of_the_kernels_size(implementation):
    factors = factors_of(RECORD, SPEC, dtype=np.float32)
    x, y = image(RECORD, batch=7, dtype=np.float32), np.ones((7, 7, 6, 40), np.float32)
    program = jax.jit(pulled(implementation, RECORD)).lower(factors, x, y).compile()
    assert (RECORD.shape.size in sizes_in(program)) == (implementation == "generate")
    if implementation == "factored":  # there is no array of the size of U B either
        assert RECORD.shape.size * 10 // 40 not in sizes_in(program)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_residuals_are_the_factors_and_x_unless_these_are_frozen(implementation):
    factors, x = factors_of(RECORD, SPEC, dtype=np.float32), image(RECORD, dtype=np.float32)
    layer = functools.partial(apply_generated, implementation, layer=RECORD)

    def kept(fn, *args):
        return sum(
            r.size for r in jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(fn, *a)[1], *args))
        )

    num_factors = sum(f.size for f in factors.values())
    assert kept(layer, factors, x) == num_factors + x.size
    assert kept(lambda x: layer(factors, x), x) <= num_factors


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
def test_frozen_factors_leave_the_gradient_of_x(x64, implementation, monkeypatch):
    monkeypatch.setattr(_factored, "PART_BYTES", 1)
    factors, x = factors_of(RECORD, SPEC), image(RECORD)
    layer = functools.partial(apply_generated, implementation, factors, layer=RECORD)
    frozen = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(layer(x)))))(x)
    cotangent = np.cos(oracle(RECORD, factors, x))
    assert relative_error(frozen, pulled("generate", RECORD)(factors, x, cotangent)[1][1]) < X64


def test_temporaries_stay_small_however_large_the_batch():
    temporary = {}
    for batch in (16, 64):
        x = jax.ShapeDtypeStruct((batch, 32, 32, 24), jnp.float32)
        factors = factors_of(RECORD, GenerationSpec(2, 20), dtype=np.float32)
        y = jax.ShapeDtypeStruct((batch, 32, 32, 40), jnp.float32)
        program = jax.jit(pulled("factored", RECORD)).lower(factors, x, y).compile()
        # Not counting x, which is copied for the backward pass.
        temporary[batch] = program.memory_analysis().temp_size_in_bytes - 4 * x.size
    assert temporary[64] < 1.1 * temporary[16]


def test_bfloat16_is_as_exact_as_with_the_built_kernel():
    exact, x = factors_of(RECORD, SPEC), jnp.asarray(image(RECORD), jnp.bfloat16)
    factors = {n: jnp.asarray(v, jnp.float32) for n, v in exact.items()}
    expected = oracle(RECORD, exact, np.asarray(x, np.float64))
    error = {}
    for implementation in IMPLEMENTATIONS:
        y = apply_generated(implementation, factors, x, RECORD)
        assert y.dtype == jnp.bfloat16
        error[implementation] = relative_error(y, expected)
    assert error["factored"] <= 1.1 * error["generate"]


def test_under_vmap_and_scan(x64):
    factors, xs = factors_of(RECORD, SPEC), np.stack([image(RECORD), 2 * image(RECORD)])

    def gradient(x):
        layer = functools.partial(apply_generated, "factored", layer=RECORD)
        return jax.grad(lambda f: jnp.sum(layer(f, x) ** 2))(factors)["basis"]

    expected = np.stack([jax.jit(gradient)(x) for x in xs])
    assert relative_error(jax.jit(jax.vmap(gradient))(xs), expected) < X64
    assert relative_error(jax.lax.scan(lambda c, x: (c, gradient(x)), 0, xs)[1], expected) < X64


@pytest.mark.parametrize("spec", [SPEC, GenerationSpec(2, 0)], ids=["both levels", "level 1"])
@pytest.mark.parametrize("groups", [1, 2])
def test_factored_on_other_backends(x64, spec, groups):
    """The implementation for these backends also runs on a CPU; it is lowered for CUDA.

    Only layers that have groups themselves become grouped convolutions.
    """
    record = LayerGeometry(
        ("layer",),
        "conv",
        KernelShape(12, 6, (3, 3)),
        groups=groups,
        strides=(2, 1),
        dilation=(1, 2),
        padding=((1, 2), (2, 0)),
    )
    factors, x = factors_of(record, spec), image(record)
    if groups == 1:
        prepared = _factored._prepare_diagonal(factors, record, x.dtype)
        y = _factored._forward_by_diagonal(prepared, jnp.asarray(x), record)
    else:
        prepared = _factored._prepare_levels(factors, record)
        y = _factored._forward_by_groups(prepared, jnp.asarray(x), record)
    assert relative_error(y, oracle(record, factors, x)) < X64
    lowered = (
        jax.jit(pulled("factored", record)).trace(factors, x, y).lower(lowering_platforms=("cuda",))
    )
    counts = {int(n) for n in re.findall(r"feature_group_count = (\d+)", lowered.as_text())}
    num_bases = factors["basis"].shape[0] * (groups if "coeff_out" in factors else 1)
    assert counts == {1} if groups == 1 else num_bases in counts


def test_a_batch_split_over_devices_stays_where_it_is():
    assert_on_four_devices("tests.generation.mesh_script")


@pytest.mark.bad_input
def test_unknown_implementation():
    with pytest.raises(ValueError, match="`implementation` must be one of .*'fast'"):
        apply_generated("fast", {}, jnp.ones((1, 2, 2, 1)), RECORD)
