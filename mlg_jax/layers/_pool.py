"""Pooling over images."""

import jax.numpy as jnp
from jax import lax

from mlg_jax._types import Array, Float


def max_pool(
    x: Float[Array, "n h w c"],
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
) -> Float[Array, "n p q c"]:
    """Largest entry of each window; padding counts as minus infinity."""
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        window_dimensions=(1, *window, 1),
        window_strides=(1, *strides, 1),
        padding=((0, 0), *padding, (0, 0)),
    )


def global_mean_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n c"]:
    """Mean over all positions."""
    return jnp.mean(x, axis=(1, 2))
