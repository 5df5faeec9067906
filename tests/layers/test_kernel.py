"""Providers: which one serves a layer, what it declares, where it starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import GenerationSpec, QuantSpec, generate_kernel
from mlg_jax._types import KernelShape
from mlg_jax.generation import from_layout
from mlg_jax.layers import DenseKernel, GeneratedKernel, KernelsByPath

SHAPE = KernelShape(64, 48, (3, 3))
SPEC = GenerationSpec.from_bits(2, 24, 3, 6, 4)


def draw(provider, shape, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        r.name: provider.initializer(r.name, shape)(k, r.shape, jnp.float32)
        for r, k in zip(provider.records(shape), keys, strict=False)
    }


def test_generated_kernel_stores_only_its_factors():
    records = GeneratedKernel(SPEC).records(SHAPE)
    assert [(r.name, r.shape, r.bits) for r in records] == [
        ("basis", (24, 2, 9), 3),
        ("coeff_in", (24, 48, 2), 6),
        ("coeff_out", (64, 24), 4),
    ]


def test_published_initial_deviations():
    draws = draw(GeneratedKernel(SPEC), SHAPE)
    expected = {"basis": 2 / (64 * 9), "coeff_in": 2 / (24 * 2), "coeff_out": 2 / 64}
    for name, variance in expected.items():
        spread = 5 * np.sqrt(2 / draws[name].size)  # five standard errors of a variance
        assert np.var(draws[name]) == pytest.approx(variance, rel=spread)


@pytest.mark.parametrize("base_in, base_out", [(2, 24), (0, 24), (2, 0)])
def test_variance_initialisation_gives_the_product_he_variance(base_in, base_out):
    provider = GeneratedKernel(GenerationSpec(base_in, base_out, init="variance"))
    kernels = []
    for seed in range(40):
        f = draw(provider, SHAPE, seed)
        kernels.append(generate_kernel(f["basis"], f.get("coeff_in"), f.get("coeff_out")))
    assert np.var(np.stack(kernels)) == pytest.approx(2 / (64 * 9), rel=0.1)


def test_layers_without_levels_fall_back_to_an_ordinary_quantised_kernel():
    provider = GeneratedKernel(GenerationSpec(2, 44), DenseKernel(QuantSpec(8)))
    depthwise = KernelShape(32, 1, (3, 3))
    served = provider.resolve("any", depthwise)
    assert served == DenseKernel(QuantSpec(8))
    assert served.records(depthwise)[0].shape == (3, 3, 1, 32)
    assert served.records(depthwise)[0].bits == 8


@pytest.mark.parametrize("fan, variance", [("out", 2 / (64 * 9)), ("in", 2 / (48 * 9))])
def test_dense_initial_deviation(fan, variance):
    kernel = draw(DenseKernel(fan=fan), SHAPE)["kernel"]
    assert np.var(kernel) == pytest.approx(variance, rel=0.05)


def test_first_matching_pattern_decides():
    first, second = GenerationSpec(2, 4), GenerationSpec(2, 8)
    choice = KernelsByPath(
        (
            ("stage1_*/conv1", GeneratedKernel(first)),
            ("stage2_*", DenseKernel(QuantSpec(4))),
            ("*conv*", GeneratedKernel(second)),
        )
    )
    assert choice.resolve("stage1_block1/conv1", SHAPE) == GeneratedKernel(first)
    assert choice.resolve("stage1_block1/conv2", SHAPE) == GeneratedKernel(second)
    assert choice.resolve("stage2_block1/conv1", SHAPE) == DenseKernel(QuantSpec(4))
    assert choice.resolve("classifier", SHAPE) == DenseKernel()


def test_each_factor_gets_its_own_random_mask():
    spec = GenerationSpec(2, 24, *(QuantSpec(2, ratio=0.5) for _ in range(3)))
    provider = GeneratedKernel(spec)
    assert provider.is_random and not GeneratedKernel(SPEC).is_random
    same = jnp.linspace(-1, 1, 40)
    q = provider.quantize({"basis": same, "coeff_in": same}, jax.random.key(0))
    assert not np.array_equal(q["basis"], q["coeff_in"])


def test_build_puts_the_kernel_into_flax_layout():
    provider = GeneratedKernel(SPEC)
    f = draw(provider, SHAPE)
    kernel = provider.build(f, SHAPE)
    assert kernel.shape == (3, 3, 48, 64)
    expected = generate_kernel(f["basis"], f["coeff_in"], f["coeff_out"])
    assert np.array_equal(from_layout(kernel), expected)


def test_no_stream_is_needed_where_nothing_is_rounded():
    assert not GeneratedKernel(GenerationSpec(2, 24, *(QuantSpec(None, ratio=0.5),) * 3)).is_random


@pytest.mark.bad_input
def test_bad_providers():
    with pytest.raises(TypeError, match="`quant` must be QuantSpec; got 4"):
        DenseKernel(4)
    with pytest.raises(ValueError, match=r"`fan` must be one of \['in', 'out'\]; got 'both'"):
        DenseKernel(fan="both")
    with pytest.raises(TypeError, match=r"`spec` must be GenerationSpec; got \(2, 4\)"):
        GeneratedKernel((2, 4))
    with pytest.raises(TypeError, match="`fallback` must be DenseKernel; got 8"):
        GeneratedKernel(SPEC, 8)
