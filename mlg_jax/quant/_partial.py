"""Partial quantisation: a random share of the entries is rounded, the rest stays exact."""

import jax
import jax.numpy as jnp

from mlg_jax._types import Array, Float, Key


def mix_at_random(
    key: Key,
    ratio: float,
    rounded: Float[Array, "*shape"],
    exact: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """Takes each entry from `rounded` with probability `ratio`, else from `exact`.

    The gradient follows the entry: straight-through where rounded, the re-parametrisation's where
    exact. Reference: Fan et al., https://arxiv.org/abs/2004.07320.
    """
    is_rounded = jax.random.bernoulli(key, ratio, rounded.shape)
    return jnp.where(is_rounded, rounded, exact)
