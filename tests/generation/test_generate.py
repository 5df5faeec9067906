"""W = V (U B) against explicit sums; values and gradients against those of the original code."""

import json

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from mlg_jax import QuantSpec, fake_quantize, generate_kernel
from mlg_jax._convolution import convolve, to_layout
from mlg_jax._types import KernelShape
from mlg_jax.generation import orthogonality_penalty
from tests import _oracles
from tests._tolerances import X64, relative_error
from tests.conftest import REFERENCE

CASES = json.loads((REFERENCE / "mlg_conv.json").read_text())


def factors(rng, num_bases=5, base_in=2, in_channels=4, taps=9, out_channels=7):
    return (
        rng.normal(size=(num_bases, base_in, taps)),
        rng.normal(size=(num_bases, in_channels, base_in)),
        rng.normal(size=(out_channels, num_bases)),
    )


@pytest.mark.parametrize("has_in", [True, False])
@pytest.mark.parametrize("has_out", [True, False])
def test_equals_explicit_sums(x64, has_in, has_out):
    basis, coeff_in, coeff_out = factors(np.random.default_rng(0))
    args = (basis, coeff_in if has_in else None, coeff_out if has_out else None)
    kernel = generate_kernel(*(None if a is None else jnp.asarray(a) for a in args))
    assert relative_error(kernel, _oracles.generate(*args)) <= 1e-13


def test_gradients(x64):
    args = tuple(jnp.asarray(f) for f in factors(np.random.default_rng(1)))
    arrays = lambda *a: generate_kernel(*map(jnp.asarray, a))  # noqa: E731
    jax.test_util.check_grads(arrays, args, order=2, rtol=1e-6)


def case_arrays(numbers, case):
    prefix = f"{case['id']}/"
    return {k.removeprefix(prefix): v for k, v in numbers.items() if k.startswith(prefix)}


def spec_of(case, name):
    bits = case[f"{name}_bits"]
    return QuantSpec(None if bits == 32 else bits)


def flat_factors(arrays):
    flat = {n: jnp.asarray(arrays[n]) for n in ("basis", "coeff_in", "coeff_out") if n in arrays}
    return flat | {"basis": flat["basis"].reshape(*flat["basis"].shape[:2], -1)}


@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c["id"]))
def test_convolution_and_all_gradients_match_the_original(x64, reference, case):
    arrays = case_arrays(reference("mlg_conv"), case)
    k, pad = case["kernel_size"], case["padding"]
    shape = KernelShape(case["out_channels"], case["in_channels"], (k, k))

    def layer(params, x):
        q = {n: fake_quantize(v, spec_of(case, n)) for n, v in params.items()}
        kernel = generate_kernel(q["basis"], q.get("coeff_in"), q.get("coeff_out"))
        y = convolve(
            x.transpose(0, 2, 3, 1),
            to_layout(kernel, shape),
            strides=(case["stride"],) * 2,
            padding=((pad, pad),) * 2,
        )
        return y.transpose(0, 3, 1, 2), kernel

    params = flat_factors(arrays)
    y, vjp, kernel = jax.vjp(layer, params, jnp.asarray(arrays["x"]), has_aux=True)
    d_params, d_x = vjp(jnp.asarray(arrays["ct"]))
    assert relative_error(kernel.reshape(arrays["weight"].shape), arrays["weight"]) <= X64
    assert relative_error(y, arrays["y"]) <= X64
    assert relative_error(d_x, arrays["d_x"]) <= X64
    for name, gradient in d_params.items():
        expected = arrays[f"d_{name}"].reshape(gradient.shape)
        assert relative_error(gradient, expected) <= X64, name


@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c["id"]))
def test_penalty_and_its_gradients_match_the_original(x64, reference, case):
    arrays = case_arrays(reference("mlg_conv"), case)
    params = flat_factors(arrays)

    def penalty(params):
        return orthogonality_penalty(
            params["basis"], params.get("coeff_in"), params.get("coeff_out")
        )

    value, gradients = jax.value_and_grad(penalty)(params)
    assert relative_error(value, arrays["ortho"]) <= X64
    for name, gradient in gradients.items():
        expected = arrays[f"ortho_d_{name}"].reshape(gradient.shape)
        assert relative_error(gradient, expected) <= X64, name


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "shapes, message",
    [
        (((5, 9), None, None), r"`basis` must have shape \[Bo, Bi, K\]; got \(5, 9\)"),
        (((5, 2, 9), (5, 4, 3), None), r"`coeff_in` must .* \[5, Ci, 2\] .* got \(5, 4, 3\)"),
        (((5, 2, 9), (4, 4, 2), None), r"`coeff_in` must .* got \(4, 4, 2\)"),
        (((5, 2, 9), None, (7, 4)), r"`coeff_out` must .* \[Co, 5\] .* got \(7, 4\)"),
        (((5, 2, 9), None, (7, 5, 1)), r"`coeff_out` must .* got \(7, 5, 1\)"),
    ],
)
@pytest.mark.parametrize("function", [generate_kernel, orthogonality_penalty])
def test_factors_of_wrong_shape(function, shapes, message):
    with pytest.raises(ValueError, match=message):
        function(*(None if s is None else jnp.zeros(s) for s in shapes))


@pytest.mark.bad_input
def test_integer_factors():
    with pytest.raises(TypeError, match="`coeff_in` must have a floating-point dtype; got int32"):
        generate_kernel(jnp.zeros((5, 2, 9)), jnp.zeros((5, 4, 2), jnp.int32), None)
