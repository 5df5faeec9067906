"""SVD projection: the original's reconstructions, exactness at full rank, optimality."""

import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import GenerationSpec, generate_kernel, project_kernel
from tests._tolerances import X64, relative_error


@pytest.mark.parametrize("case", range(3))
def test_reconstruction_matches_the_original(x64, reference, case):
    numbers = reference("svd_projection")
    in_channels, out_channels, k, base_in, base_out = (int(c) for c in numbers[f"{case}/cfg"])
    kernel = jnp.asarray(numbers[f"{case}/W"]).reshape(out_channels, in_channels, k * k)
    factors = project_kernel(kernel, GenerationSpec(base_in, base_out))
    rebuilt = generate_kernel(*factors)
    expected = numbers[f"{case}/reconstruction"].reshape(kernel.shape)
    assert relative_error(rebuilt, expected) <= X64
    assert relative_error(jnp.mean((rebuilt - kernel) ** 2), numbers[f"{case}/mse"]) <= X64


def test_a_generated_kernel_is_recovered_exactly(x64):
    rng = np.random.default_rng(0)
    truth = generate_kernel(
        *(jnp.asarray(rng.normal(size=s)) for s in ((3, 2, 9), (3, 8, 2), (16, 3)))
    )
    # The true row space is spanned by three bases of rank two, but the decomposition may pick other
    # bases of this space with a higher rank; six basis kernels suffice for any of them.
    assert (
        relative_error(generate_kernel(*project_kernel(truth, GenerationSpec(6, 3))), truth) < 1e-12
    )


def test_outer_factor_is_orthonormal_and_shapes_are_the_specs():
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(24, 16, 9)), jnp.float32)
    spec = GenerationSpec(2, 10)
    basis, coeff_in, coeff_out = project_kernel(kernel, spec)
    assert basis.shape == (10, 2, 9) and coeff_in.shape == (10, 16, 2)
    np.testing.assert_allclose(coeff_out.T @ coeff_out, np.eye(10), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_decomposed_in_float32(dtype):
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(24, 16, 9)), dtype)
    factors = project_kernel(kernel, GenerationSpec(2, 10))
    exact = project_kernel(kernel.astype(jnp.float32), GenerationSpec(2, 10))
    assert {f.dtype for f in factors} == {jnp.dtype(dtype)}
    assert relative_error(generate_kernel(*factors), generate_kernel(*exact)) < 0.05


def test_neither_level_returns_the_kernel():
    kernel = jnp.ones((4, 1, 9))
    basis, coeff_in, coeff_out = project_kernel(kernel, GenerationSpec(2, 44))
    assert basis is kernel and coeff_in is None and coeff_out is None


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "kernel, spec, error, message",
    [
        (jnp.ones((3, 3)), GenerationSpec(2, 4), ValueError, r"`kernel` must .* got \(3, 3\)"),
        (jnp.ones((0, 3, 9)), GenerationSpec(2, 4), ValueError, r"with sizes > 0; got \(0, 3, 9\)"),
        (jnp.ones((4, 3, 9), int), GenerationSpec(2, 4), TypeError, "`kernel` must have a float"),
        (jnp.ones((4, 3, 9)), (2, 4), TypeError, r"`spec` must be GenerationSpec; got \(2, 4\)"),
    ],
)
def test_bad_input(kernel, spec, error, message):
    with pytest.raises(error, match=message):
        project_kernel(kernel, spec)
