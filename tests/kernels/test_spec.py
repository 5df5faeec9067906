"""Which levels apply under the rules of the paper's code: every branch and the reference cases."""

import json

import hypothesis
import hypothesis.strategies as st
import pytest

from mlg_jax import GenerationSpec, QuantSpec
from mlg_jax._types import KernelShape
from tests.conftest import REFERENCE

CASES = json.loads((REFERENCE / "mlg_conv.json").read_text())


def resolve(base_in, base_out, in_channels, out_channels, k):
    shape = KernelShape(out_channels, in_channels, (k, k))
    return GenerationSpec(base_in, base_out).resolve(shape)


@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c["id"]))
def test_reference_cases(case):
    shapes = resolve(
        case["base_in"],
        case["base_out_requested"],
        case["in_channels"],
        case["out_channels"],
        case["kernel_size"],
    )
    rows = case["base_in"] if case["has_coeff_in"] else case["in_channels"]
    assert shapes.basis == (case["base_out"], rows, case["kernel_size"] ** 2)
    assert (shapes.coeff_in is not None) == case["has_coeff_in"]
    assert (shapes.coeff_out is not None) == case["has_coeff_out"]


@pytest.mark.parametrize(
    "request_, layer, expected",
    [
        # the stem: level 1 only
        ((2, 44), (3, 64, 3), ((64, 2, 9), (64, 3, 2), None)),
        # 1 x 1 with a requested Bo that is too large: 0.9 of the smaller side
        ((2, 44), (32, 40, 1), ((28, 32, 1), None, (40, 28))),
        ((2, 44), (44, 64, 1), ((39, 44, 1), None, (64, 39))),
        ((2, 44), (45, 64, 1), ((44, 45, 1), None, (64, 44))),
        # depthwise: one input channel per group, so no level 1
        ((2, 44), (1, 64, 3), None),
        ((2, 5), (1, 64, 3), ((5, 1, 9), None, (64, 5))),
        # Bi too large for level 1
        ((9, 10), (16, 24, 3), ((10, 16, 9), None, (24, 10))),
        # neither level
        ((0, 0), (16, 24, 3), None),
        ((2, 44), (1, 1, 1), None),
        # Bo equal to the rank: no level 2
        ((2, 24), (16, 24, 3), ((24, 2, 9), (24, 16, 2), None)),
        ((2, 23), (16, 24, 3), ((23, 2, 9), (23, 16, 2), (24, 23))),
    ],
)
def test_rules(request_, layer, expected):
    assert resolve(*request_, *layer) == expected


@hypothesis.given(
    st.integers(0, 12),
    st.integers(0, 70),
    st.integers(1, 48),
    st.integers(1, 48),
    st.integers(1, 5),
)
@hypothesis.settings(max_examples=200)
def test_factors_always_fit_together(base_in, base_out, in_channels, out_channels, k):
    shapes = resolve(base_in, base_out, in_channels, out_channels, k)
    if shapes is None:
        return
    num_bases, rows, taps = shapes.basis
    assert min(shapes.basis) >= 1 and taps == k * k
    assert shapes.coeff_in in (None, (num_bases, in_channels, rows))
    assert rows == (base_in if shapes.coeff_in else in_channels)
    assert shapes.coeff_out in (None, (out_channels, num_bases))
    assert shapes.coeff_out or num_bases == out_channels
    assert shapes.coeff_in or shapes.coeff_out


def test_paper_notation():
    spec = GenerationSpec.from_bits(2, 44, 3, 6, 3)
    assert spec == GenerationSpec(2, 44, QuantSpec(3), QuantSpec(6), QuantSpec(3))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: GenerationSpec(-1, 44), ValueError, "`base_in` must be an integer >= 0; got -1"),
        (lambda: GenerationSpec(2, -4), ValueError, "`base_out` must be an integer >= 0; got -4"),
        (lambda: GenerationSpec(2.0, 44), TypeError, "`base_in` must be an integer >= 0; got 2.0"),
        (lambda: GenerationSpec(2, 44, 3), TypeError, "`basis` must be QuantSpec; got 3"),
        (lambda: GenerationSpec(2, 44, init="xavier"), ValueError, "`init` must be one of .*fan_o"),
        (lambda: GenerationSpec.from_bits(2, 4, 0), ValueError, "`bits` must be .* got 0"),
    ],
)
def test_bad_specs(make, error, message):
    with pytest.raises(error, match=message):
        make()
