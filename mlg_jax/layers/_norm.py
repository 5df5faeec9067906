"""Batch normalisation with PyTorch's running statistics, so that its checkpoints mean the same."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from mlg_jax._checks import check_floating, check_real
from mlg_jax._types import Array, FactorRecord, LayerRecord
from mlg_jax.layers._records import record_layer


class BatchNorm(nn.Module):
    """Normalises over all axes but the last.

    A batch is normalised by its biased variance; the running variance is updated with the unbiased
    one, as in PyTorch (`flax.linen.BatchNorm` uses the biased one for both).

    Attributes:
        momentum: of the running statistics, in Flax's sense (PyTorch's 0.1 is 0.9 here).
        epsilon: added to the variance.
        dtype: of the result; None follows the input.
        param_dtype: of scale, bias and statistics.

    Collections: `params` (scale, bias), `batch_stats` (mean, var).

    Reference: https://arxiv.org/abs/1502.03167.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Normalises `x`, `[..., C]`, floating; with `train` by the batch's own statistics."""
        check_real("momentum", self.momentum, 0.0, 1.0)
        check_real("epsilon", self.epsilon, 0.0, exclusive_minimum=True)
        check_floating("x", x)
        if x.ndim < 2:
            raise ValueError(f"`x` must have shape [..., C] with a batch; got {x.shape}.")
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)
        factors = (FactorRecord("scale", shape), FactorRecord("bias", shape))
        record_layer(self, LayerRecord(self.path, "norm", factors))
        batch_mean, batch_var = mean.value, var.value
        if train:
            batch_mean, batch_var = _moments(x, self.param_dtype)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = batch_var * (count / max(count - 1, 1))
                mean.value = self._moved(mean.value, batch_mean)
                var.value = self._moved(var.value, unbiased)
        factor = lax.rsqrt(batch_var + self.epsilon) * scale
        y = (x - batch_mean) * factor + bias
        return y.astype(self.dtype or x.dtype)

    def _moved(self, old: Array, new: Array) -> Array:
        return self.momentum * old + (1.0 - self.momentum) * lax.stop_gradient(new)


def _moments(x: Array, dtype: Any) -> tuple[Array, Array]:
    """Mean and biased variance per channel, in one pass over `x`."""
    wide = x.astype(jnp.promote_types(x.dtype, dtype))
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(wide, axes)
    return mean, jnp.maximum(jnp.mean(jnp.square(wide), axes) - jnp.square(mean), 0.0)
