"""Rectified Adam, with a rectification that float32 does not cancel away."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

_THRESHOLD = 5.0  # steps with rho_t above it are rectified, the others are momentum steps

# x / expm1(x) = 1 - x / 2 + sum_k B_2k x^2k / (2k)!: the even coefficients, from k = 1. At x = 1,
# the edge of the series' use, the first one left out is 5e-10.
_EVEN_COEFFICIENTS = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160)


class RAdamState(NamedTuple):
    """Number of updates and running moments."""

    num_updates: jax.Array  # int32 scalar
    mu: Any  # first moment, like the parameters
    nu: Any  # second moment, like the parameters


def scale_by_radam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Rescales gradients by rectified Adam.

    `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `m^ = m / (1 - b1^t)`,
    `v^ = v / (1 - b2^t)`; the update is `r_t m^ / (sqrt(v^) + eps)` where `rho_t > 5`, else `m^`.

    `optax.scale_by_radam` is the same algorithm, but its float32 `rho_t = rho_inf - 2 t b2^t /
    (1 - b2^t)` is a small difference of numbers near 2,000: its increments are 1.2 % off at step 6.

    Args:
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in (0, 1).
        eps: added to the root of the second moment.

    Returns:
        A transformation; the learning rate and its sign are the caller's.

    Reference: https://arxiv.org/abs/1908.03265.
    """
    rectification = make_rectification(b2)

    def init(params: Any) -> RAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return RAdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(grads: Any, state: RAdamState, params: Any = None) -> tuple[Any, RAdamState]:
        del params
        count = optax.safe_increment(state.num_updates)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        mu_scale = 1.0 / _one_minus_power(b1, count)
        nu_scale = 1.0 / _one_minus_power(b2, count)
        is_rectified, factor = rectification(count)

        def rescale(m: jax.Array, v: jax.Array) -> jax.Array:
            m_hat = m * mu_scale.astype(m.dtype)
            adapted = (
                factor.astype(m.dtype) * m_hat / (jnp.sqrt(v * nu_scale.astype(v.dtype)) + eps)
            )
            return jnp.where(is_rectified, adapted, m_hat)

        return jax.tree.map(rescale, mu, nu), RAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def make_rectification(
    b2: float,
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """The function from a step `t >= 1` to (`rho_t > 5`, the factor `r_t`), stable in float32.

    With `a = -log b2` and `x = a t`, `rho_t = rho_inf - 2 t / expm1(x)
    = (rho_inf - 2 / a) + (2 / a) (1 - x / expm1(x))`: the first term is computed once in float64,
    the second is a series in `x` near 0.

    Args:
        b2: decay of the second moment, in (0, 1).

    Returns:
        The function; it can be traced.
    """
    rate = -math.log(b2)
    rho_inf = 2.0 / (1.0 - b2) - 1.0
    offset = rho_inf - 2.0 / rate
    norm = rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0))

    def rectification(count: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jnp.asarray(count, jnp.float32) * rate
        rho = offset + (2.0 / rate) * _one_minus_x_over_expm1(x)
        is_rectified = rho > _THRESHOLD
        safe_rho = jnp.where(is_rectified, rho, 2.0 * _THRESHOLD)
        factor = jnp.sqrt((safe_rho - 4.0) * (safe_rho - 2.0) / safe_rho * norm)
        return is_rectified, factor

    return rectification


def _one_minus_x_over_expm1(x: jax.Array) -> jax.Array:
    """`1 - x / expm1(x)` for x > 0, to float32's relative precision."""
    square = x * x
    tail = jnp.zeros_like(x)
    for coefficient in reversed(_EVEN_COEFFICIENTS):
        tail = square * (coefficient + tail)
    large = jnp.maximum(x, 1.0)
    return jnp.where(x < 1.0, x / 2.0 - tail, 1.0 - large / jnp.expm1(large))


def _one_minus_power(decay: float, count: jax.Array) -> jax.Array:
    """`1 - decay ** count`, to float32's relative precision."""
    if decay == 0.0:
        return jnp.ones((), jnp.float32)
    return -jnp.expm1(jnp.asarray(count, jnp.float32) * math.log(decay))
