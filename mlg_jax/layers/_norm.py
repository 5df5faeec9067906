"""Batch normalisation with PyTorch's running statistics, so that its checkpoints mean the same."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from mlg_jax._checks import check_choice, check_floating, check_real
from mlg_jax._ordering import wait_for
from mlg_jax._types import Array, FactorRecord, LayerRecord
from mlg_jax.layers._records import record_layer

STATISTICS = ("batch", "running")


class BatchNorm(nn.Module):
    """Normalises over all axes but the last.

    A batch is normalised by its biased variance; the running variance is updated with the unbiased
    one, as in PyTorch (`flax.linen.BatchNorm` uses the biased one for both).

    Attributes:
        momentum: of the running statistics, in Flax's sense (PyTorch's 0.1 is 0.9 here).
        epsilon: added to the variance.
        statistics: what training normalises by: `batch`, or `running`, which then stay as they
            are; without a gradient for the scale the input need not be kept either.
        dtype: of the result; None follows the input.
        param_dtype: of scale, bias and statistics.

    Collections: `params` (scale, bias), `batch_stats` (mean, var).

    Reference: https://arxiv.org/abs/1502.03167.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    statistics: str = "batch"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Normalises `x`, `[..., C]`, floating; `statistics` says by what in training."""
        check_real("momentum", self.momentum, 0.0, 1.0)
        check_real("epsilon", self.epsilon, 0.0, exclusive_minimum=True)
        check_choice("statistics", self.statistics, STATISTICS)
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
        if not train or self.statistics == "running":
            y = _affine(x, mean.value, var.value, scale, bias, self.epsilon)
            return y.astype(self.dtype or x.dtype)
        y, batch_mean, batch_var = _normalize(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            unbiased = batch_var * (count / max(count - 1, 1))
            mean.value = self._moved(mean.value, batch_mean)
            var.value = self._moved(var.value, unbiased)
        return y.astype(self.dtype or x.dtype)

    def _moved(self, old: Array, new: Array) -> Array:
        return self.momentum * old + (1.0 - self.momentum) * lax.stop_gradient(new)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """Normalised `x`, in the wider dtype of the two, with mean and biased variance of the batch.

    Forward: `y = h scale + bias`, `h = (x - mean) / sqrt(var + epsilon)`.
    Backward: with n entries a channel and sums over them, `d scale = sum(dy h)`,
    `d bias = sum(dy)`, `dx = scale / sqrt(var + epsilon) (dy - d bias / n - h d scale / n)`, plus
    `(d mean + 2 (x - mean) d var) / n`.
    Residuals: x, and four numbers a channel. Left to itself JAX keeps `x - mean` beside x.
    """
    mean, var = _moments(x, scale.dtype)
    return _affine(x, mean, var, scale, bias, epsilon), mean, var


def _normalize_fwd(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Any, Any]:
    outputs = _normalize(x, scale, bias, epsilon)
    return outputs, (x, scale, bias, outputs[1], outputs[2])


def _normalize_bwd(epsilon: float, residuals: Any, cotangents: Any) -> tuple[Array, Array, Array]:
    x, scale, bias, mean, var = residuals
    dy, d_mean, d_var = cotangents
    mean = wait_for(mean, dy)  # else `x - mean` is kept from the forward pass, being the same
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    centered = x - mean
    inverse = lax.rsqrt(var + epsilon)
    d_bias = jnp.sum(dy, axes)
    d_scale = jnp.sum(dy * centered, axes) * inverse
    slope = (2 * d_var - scale * inverse**2 * d_scale) / count
    dx = scale * inverse * dy + slope * centered + (d_mean - scale * inverse * d_bias) / count
    return dx.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


_normalize.defvjp(_normalize_fwd, _normalize_bwd)


def _affine(x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    return (x - mean) * (lax.rsqrt(var + epsilon) * scale) + bias


def _moments(x: Array, dtype: Any) -> tuple[Array, Array]:
    """Mean and biased variance per channel, in one pass over `x`.

    `E[x^2] - E[x]^2` cancels where the mean is large, so both are taken of `x - shift`. With the
    mean of one of the N examples as the shift, `(mean - shift)^2 <= (N - 1) var`: the relative
    error of the variance is bounded by about N times the rounding error, whatever the input.
    """
    wide = x.astype(jnp.promote_types(x.dtype, dtype))
    shift = jnp.mean(wide[0], tuple(range(x.ndim - 2)))
    axes = tuple(range(x.ndim - 1))
    shifted = wide - shift
    mean = jnp.mean(shifted, axes)
    variance = jnp.maximum(jnp.mean(jnp.square(shifted), axes) - jnp.square(mean), 0.0)
    return shift + mean, variance
