"""Projection onto any parametrisation whose kernel is linear in each of its factors."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mlg_jax._types import Array
from mlg_jax.quant import wide

_NUM_ROUNDS = 20  # over all factors; a single factor needs only one
_NUM_STEPS = 50  # of conjugate gradients for one factor

Factors = Mapping[str, Any]


def least_squares(
    build: Callable[[Factors], Array], start: Factors, kernel: Array
) -> dict[str, Array]:
    """Factors that minimise `|build(factors) - kernel|^2`, found by alternating least squares.

    Args:
        build: from factors to the kernel, linear in each factor.
        start: initial factors.
        kernel: the target.

    Returns:
        Factors of the same names; the optimum for a single factor, a stationary point for more.
    """
    target = wide(kernel)
    factors = {name: wide(value) for name, value in start.items()}
    num_rounds = 1 if len(factors) == 1 else _NUM_ROUNDS

    def one_round(_: Any, factors: dict[str, Array]) -> dict[str, Array]:
        for name in start:
            factors = factors | {name: _solve(build, factors, name, target)}
        return factors

    return jax.lax.fori_loop(0, num_rounds, one_round, factors)


def _solve(
    build: Callable[[Factors], Array], factors: dict[str, Array], name: str, target: Array
) -> Array:
    """The best value of one factor with the others fixed, by its normal equations `J'J v = J't`."""

    def linear(value: Array) -> Array:
        return build(factors | {name: value})

    transpose = jax.linear_transpose(linear, factors[name])

    def normal(value: Array) -> Array:
        return transpose(linear(value))[0]

    solution, _ = jax.scipy.sparse.linalg.cg(
        normal, transpose(target)[0], factors[name], maxiter=_NUM_STEPS, tol=1e-7
    )
    return jnp.asarray(solution)
