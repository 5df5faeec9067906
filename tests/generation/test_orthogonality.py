"""The penalty's special cases and invariances; its values are matched in test_generate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import orthogonality_penalty
from tests._tolerances import relative_error


def orthonormal_rows(rng, *shape):
    q, _ = np.linalg.qr(rng.normal(size=(*shape[:-2], shape[-1], shape[-2])))
    return jnp.asarray(np.swapaxes(q, -1, -2))


def test_zero_exactly_at_orthonormal_factors(x64):
    rng = np.random.default_rng(0)
    basis = orthonormal_rows(rng, 5, 3, 9)
    coeff_in = 4.0 * orthonormal_rows(rng, 5, 3, 8).mT  # the length of columns does not matter
    coeff_out = 0.1 * orthonormal_rows(rng, 5, 12).T
    assert orthogonality_penalty(basis, coeff_in, coeff_out) < 1e-14
    assert orthogonality_penalty(2 * basis, coeff_in, coeff_out) > 0.1


def test_one_basis_kernel_leaves_only_the_outer_term(x64):
    rng = np.random.default_rng(1)
    basis, coeff_in = (
        jnp.asarray(rng.normal(size=(5, 1, 9))),
        jnp.asarray(rng.normal(size=(5, 8, 1))),
    )
    coeff_out = jnp.asarray(rng.normal(size=(12, 5)))
    unit = np.asarray(coeff_out) / np.linalg.norm(coeff_out, axis=0)
    expected = np.mean((unit.T @ unit - np.eye(5)) ** 2)
    assert relative_error(orthogonality_penalty(basis, coeff_in, coeff_out), expected) < 1e-7
    assert orthogonality_penalty(basis, coeff_in, None) == 0.0


def test_without_level_one_the_rows_of_the_matrix_count(x64):
    basis = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3, 9)))
    matrix = np.asarray(basis).reshape(4, 27)
    expected = np.mean((matrix @ matrix.T - np.eye(4)) ** 2)
    assert relative_error(orthogonality_penalty(basis, None, None), expected) < 1e-12


def test_the_norm_is_a_constant_to_autodiff(x64):
    # With a differentiable norm the gradient would be orthogonal to each column; it is not.
    coeff_out = jnp.asarray(np.random.default_rng(3).normal(size=(6, 3)))
    basis = orthonormal_rows(np.random.default_rng(4), 3, 2, 9)
    gradient = jax.grad(lambda v: orthogonality_penalty(basis, jnp.ones((3, 4, 2)), v))(coeff_out)
    assert np.max(np.abs(np.sum(gradient * coeff_out, axis=0))) > 1e-3


def test_a_zero_column_is_harmless_in_half_precision():
    coeff_out = jnp.ones((4, 2), jnp.float16).at[:, 0].set(0)
    basis = jnp.ones((2, 1, 9), jnp.float16)
    assert np.isfinite(orthogonality_penalty(basis, jnp.ones((2, 3, 1), jnp.float16), coeff_out))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_is_kept(dtype):
    assert orthogonality_penalty(jnp.ones((2, 2, 9), dtype), None, None).dtype == dtype
