"""Generated and ordinary kernels: declared factors, initialisation and supported layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import GenerationSpec, QuantSpec, generate_kernel
from mlg_jax._convolution import from_layout
from mlg_jax._types import KernelShape, LayerGeometry
from mlg_jax.kernels import KernelsByPath, OrdinarySpec, as_spec, bsconv_u

SHAPE = KernelShape(64, 48, (3, 3))
SPEC = GenerationSpec.from_bits(2, 24, 3, 6, 4)


def bound(spec, shape=SHAPE, path=()):
    return spec.bind(LayerGeometry(path=tuple(path), shape=shape))


def draw(spec, shape=SHAPE, seed=0):
    return bound(spec, shape).init(jax.random.key(seed), jnp.float32)


def test_generated_kernel_stores_only_its_factors():
    factors = bound(SPEC).factors
    assert [(f.name, f.shape, f.quant.bits) for f in factors] == [
        ("basis", (24, 2, 9), 3),
        ("coeff_in", (24, 48, 2), 6),
        ("coeff_out", (64, 24), 4),
    ]


def test_published_initial_deviations():
    draws = draw(SPEC)
    expected = {"basis": 2 / (64 * 9), "coeff_in": 2 / (24 * 2), "coeff_out": 2 / 64}
    for name, variance in expected.items():
        spread = 5 * np.sqrt(2 / draws[name].size)  # five standard errors of a variance
        assert np.var(draws[name]) == pytest.approx(variance, rel=spread)


@pytest.mark.parametrize("base_in, base_out", [(2, 24), (0, 24), (2, 0)])
def test_variance_initialisation_gives_the_product_he_variance(base_in, base_out):
    spec = GenerationSpec(base_in, base_out, init="variance")
    kernels = []
    for seed in range(40):
        f = draw(spec, SHAPE, seed)
        kernels.append(generate_kernel(f["basis"], f.get("coeff_in"), f.get("coeff_out")))
    assert np.var(np.stack(kernels)) == pytest.approx(2 / (64 * 9), rel=0.1)


def test_layers_without_levels_fall_back_to_an_ordinary_quantised_kernel():
    ordinary = OrdinarySpec(QuantSpec(8))
    spec = KernelsByPath((("*", GenerationSpec(2, 44)),), ordinary)
    depthwise = KernelShape(32, 1, (3, 3))
    served = bound(spec, depthwise)
    assert bound(GenerationSpec(2, 44), depthwise) is None
    assert served.spec == ordinary
    assert served.factors[0].shape == (3, 3, 1, 32)
    assert served.factors[0].quant.bits == 8


@pytest.mark.parametrize("fan, variance", [("out", 2 / (64 * 9)), ("in", 2 / (48 * 9))])
def test_dense_initial_deviation(fan, variance):
    kernel = draw(OrdinarySpec(fan=fan))["kernel"]
    assert np.var(kernel) == pytest.approx(variance, rel=0.05)


def test_first_matching_pattern_decides():
    first, second, ordinary = GenerationSpec(2, 4), GenerationSpec(2, 8), OrdinarySpec(QuantSpec(4))
    spec = KernelsByPath(
        (("stage1_*/conv1", first), ("stage2_*", ordinary), ("*/conv3", None), ("*conv*", second))
    )
    expected = {
        "stage1_block1/conv1": first,
        "stage1_block1/conv2": second,
        "stage1_block1/conv3": OrdinarySpec(),
        "stage2_block1/conv1": ordinary,
        "classifier": OrdinarySpec(),
    }
    assert {path: bound(spec, path=path.split("/")).spec for path in expected} == expected


def test_each_factor_gets_its_own_random_mask():
    spec = GenerationSpec(2, 24, *(QuantSpec(2, ratio=0.5) for _ in range(3)))
    kernel = bound(spec)
    assert kernel.is_random and not bound(SPEC).is_random
    same = dict.fromkeys(("basis", "coeff_in", "coeff_out"), jnp.linspace(-1, 1, 40))
    q = kernel.quantize(same, jax.random.key(0))
    assert not np.array_equal(q["basis"], q["coeff_in"])


def test_build_puts_the_kernel_into_flax_layout():
    f = draw(SPEC)
    kernel = bound(SPEC).build(f)
    assert kernel.shape == (3, 3, 48, 64)
    expected = generate_kernel(f["basis"], f["coeff_in"], f["coeff_out"])
    assert np.array_equal(from_layout(kernel), expected)


def test_no_stream_is_needed_where_nothing_is_rounded():
    assert not bound(GenerationSpec(2, 24, *(QuantSpec(None, ratio=0.5),) * 3)).is_random


def test_blueprint_separable_convolutions_are_one_weighted_basis_kernel_per_output():
    factors = {f.name: f.shape for f in bound(bsconv_u(basis=QuantSpec(4))).factors}
    assert factors == {"basis": (64, 1, 9), "coeff_in": (64, 48, 1)}
    f = draw(bsconv_u())
    expected = f["coeff_in"] * f["basis"]  # [Co, Ci, 1] times [Co, 1, K]
    np.testing.assert_allclose(from_layout(bound(bsconv_u()).build(f)), expected, rtol=1e-6)


def test_a_quantiser_stands_for_an_ordinary_kernel():
    assert as_spec(QuantSpec(4)) == OrdinarySpec(QuantSpec(4))
    assert as_spec(SPEC) is SPEC


@pytest.mark.bad_input
def test_bad_specs():
    with pytest.raises(TypeError, match="`quant` must be QuantSpec; got 4"):
        OrdinarySpec(4)
    with pytest.raises(ValueError, match=r"`fan` must be one of \['in', 'out'\]; got 'both'"):
        OrdinarySpec(fan="both")
    with pytest.raises(TypeError, match=r"`kernel` must be KernelSpec or QuantSpec; got \(2, 4\)"):
        as_spec((2, 4))
    with pytest.raises(TypeError, match=r"`choices\['\*'\]` must be KernelSpec or None; got 8"):
        KernelsByPath((("*", 8),))
    with pytest.raises(TypeError, match="`default` must be OrdinarySpec; got 8"):
        KernelsByPath((), 8)
