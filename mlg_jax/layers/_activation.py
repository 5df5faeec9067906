"""Activation functions and the quantiser of activations with its running range."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlg_jax._types import Array
from mlg_jax.quant import (
    ActivationRange,
    ActivationSpec,
    initial_range,
    quantize_activation,
    update_range,
)


class ActivationQuantizer(nn.Module):
    """Quantises its input; in training, after updating the running range with the batch.

    Collections: `batch_stats` holds `range` (`minimum`, `maximum`, `is_set`), for scheme `normal`.
    """

    spec: ActivationSpec
    param_dtype: Any = jnp.float32  # of the range

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Quantises `x`, any shape, floating."""
        if self.spec.scheme != "normal":
            return quantize_activation(x, self.spec)
        stats = self.variable(
            "batch_stats", "range", lambda: _to_dict(initial_range(self.param_dtype))
        )
        state = ActivationRange(**stats.value)
        if train and not self.is_initializing():
            state = update_range(state, x)
            stats.value = _to_dict(state)
        else:
            state = _before_training(state, x)
        return quantize_activation(x, self.spec, state)


def _to_dict(state: ActivationRange) -> dict[str, Array]:
    return state._asdict()


def _before_training(state: ActivationRange, x: Array) -> ActivationRange:
    """The range for evaluation: the running one, or that of `x` before the first training step."""
    return jax.lax.cond(
        state.is_set, lambda: state, lambda: update_range(initial_range(state.minimum.dtype), x)
    )
