"""Rectified Adam, with a rectification that is accurate in float32."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

_THRESHOLD = 5.0  # steps with rho_t above it are rectified; others use momentum only

# The even coefficients, from k = 1, of x / expm1(x) = 1 - x / 2 + sum_k B_2k x^2k / (2k)!. The
# series is used for x < 1, where the first omitted term is at most 5e-10.
_EVEN_COEFFICIENTS = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160)


class RAdamState(NamedTuple):
    """The number of updates and the running moments."""

    num_updates: jax.Array  # int32 scalar
    mu: Any  # first moment, with the structure of the parameters
    nu: Any  # second moment, likewise


def scale_by_radam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Rescales gradients by rectified Adam.

    `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `m^ = m / (1 - b1^t)`,
    `v^ = v / (1 - b2^t)`; the update is `r_t m^ / (sqrt(v^) + eps)` if `rho_t > 5`, otherwise `m^`.

    `optax.scale_by_radam` implements the same algorithm, but computes `rho_t = rho_inf - 2 t b2^t /
    (1 - b2^t)` in float32 as a small difference of numbers near 2,000, so that its updates are off
    by 1.2 % at step 6.

    Args:
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in (0, 1).
        eps: added to the square root of the second moment.

    Returns:
        A transformation that applies neither the learning rate nor its sign.

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
    """Makes the function from a step `t >= 1` to `(rho_t > 5, r_t)`, accurate in float32.

    With `a = -log b2` and `x = a t`, `rho_t = rho_inf - 2 t / expm1(x)
    = (rho_inf - 2 / a) + (2 / a) (1 - x / expm1(x))`. The first term is computed once in float64;
    near `x = 0` the second is computed by a series.

    Args:
        b2: decay of the second moment, in (0, 1).

    Returns:
        A function that can be traced.
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
    """`1 - x / expm1(x)` for x > 0, to the relative precision of float32."""
    square = x * x
    tail = jnp.zeros_like(x)
    for coefficient in reversed(_EVEN_COEFFICIENTS):
        tail = square * (coefficient + tail)
    large = jnp.maximum(x, 1.0)
    return jnp.where(x < 1.0, x / 2.0 - tail, 1.0 - large / jnp.expm1(large))


def _one_minus_power(decay: float, count: jax.Array) -> jax.Array:
    """`1 - decay ** count`, to the relative precision of float32."""
    if decay == 0.0:
        return jnp.ones((), jnp.float32)
    return -jnp.expm1(jnp.asarray(count, jnp.float32) * math.log(decay))
