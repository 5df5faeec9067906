"""Quantiser specs: equality, recommended ratios and refused arguments."""

import pytest

from mlg_jax import QuantSpec
from mlg_jax.quant import MIN_BITS, ActivationSpec, recommended_ratio


def test_specs_compare_and_hash_by_value():
    assert QuantSpec(3) == QuantSpec(bits=3, scheme="dorefa_sym", ratio=1.0)
    assert len({QuantSpec(3), QuantSpec(3), QuantSpec(4)}) == 2


def test_recommended_ratios_are_the_published_ones():
    published = "0.2 0.3 0.4 0.5 0.55 0.6 0.7 0.8 0.83 0.86 0.89 0.92 0.95 0.98 0.99 1"
    assert [recommended_ratio(b) for b in range(1, 17)] == [float(p) for p in published.split()]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: QuantSpec(0), ValueError, r"`bits` must be an integer in \[1, 16\]; got 0\."),
        (lambda: QuantSpec(33), ValueError, r"`bits` must be an integer in \[1, 16\]; got 33\."),
        (lambda: QuantSpec(2.5), TypeError, r"`bits` must be an integer in \[1, 16\]; got 2\.5\."),
        (lambda: QuantSpec(True), TypeError, r"`bits` must be an integer .*; got True\."),
        (
            lambda: QuantSpec(4, "dorfa"),
            ValueError,
            r"`scheme` must be one of \['dorefa', .*'dorfa",
        ),
        (lambda: QuantSpec(1, "qnn"), ValueError, r"`bits` must be >= 2 for scheme 'qnn'; got 1\."),
        (lambda: QuantSpec(8, "tanh_norm"), ValueError, r"`bits` must be None for scheme 'tanh_n"),
        (lambda: QuantSpec(4, ratio=0.0), ValueError, r"`ratio` must be a number in \(0\.0, 1\.0"),
        (lambda: QuantSpec(4, ratio=1.5), ValueError, r"`ratio` must be a number .*; got 1\.5\."),
        (lambda: QuantSpec(4, ratio=float("nan")), ValueError, r"`ratio` must .*; got nan\."),
        (lambda: QuantSpec(4, ratio="half"), TypeError, r"`ratio` must .*; got 'half'\."),
        (lambda: ActivationSpec(17), ValueError, r"`bits` must be an integer in \[1, 16\]; got 17"),
        (lambda: ActivationSpec(4, "qnn"), ValueError, r"`scheme` must be one of \['dorefa', 'no"),
        (
            lambda: recommended_ratio(0),
            ValueError,
            r"`bits` must be an integer in \[1, 16\]; got 0",
        ),
    ],
)
def test_bad_specs(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_every_scheme_is_accepted_at_its_smallest_width():
    for scheme, bits in MIN_BITS.items():
        spec = QuantSpec(None if scheme == "tanh_norm" else bits, scheme)
        assert spec.scheme == scheme
