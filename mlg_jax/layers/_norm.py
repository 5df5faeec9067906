"""Batch normalisation with PyTorch's running statistics, for compatible checkpoints."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from mlg_jax._checks import check_choice, check_floating, check_real
from mlg_jax._ordering import vary_alike, wait_for_on_cpu
from mlg_jax._types import Array, Initializer
from mlg_jax.kernels import Factor, LayerRecord
from mlg_jax.layers._collections import FACTORS, FOLDED, record_layer

STATISTICS = ("batch", "running")


class BatchNorm(nn.Module):
    """Normalises over all axes but the last.

    Attributes are those of `flax.linen.BatchNorm`, in its order and with its defaults, then our
    own. A batch is normalised by its biased variance; the running variance is updated with the
    unbiased one, as in PyTorch (`flax.linen.BatchNorm` uses the biased one for both).

    Attributes:
        use_running_average: whether to normalise by running statistics; None leaves it to the call.
        axis: must be -1.
        momentum: of the running statistics, in Flax's sense (PyTorch's 0.1 is 0.9 here).
        epsilon: added to the variance.
        dtype: of the result; None follows the input.
        param_dtype: of scale, bias and statistics.
        use_bias, use_scale: whether bias and scale are parameters; otherwise they are 0 and 1.
        bias_init, scale_init: their initial values.
        axis_name: name of a mapped axis (`jax.shard_map`, `jax.vmap`) over which the batch is
            split, to normalise its parts together. None normalises each part alone.
        axis_index_groups: must be None.
        use_fast_variance, force_float32_reductions: have no effect: the variance is always that of
            shifted values, in one pass, in the wider of the input's dtype and `param_dtype`.
        statistics: the statistics used in training: `batch`, or `running`, which are then not
            updated; the input is then saved only if the scale is differentiated.
        follows: name of the convolution in the same module whose output it normalises, and into
            which it can be folded. None: its input is not directly a convolution's output.

    Collections: `params` (scale, bias), `batch_stats` (mean, var).

    Reference: https://arxiv.org/abs/1502.03167.
    """

    use_running_average: bool | None = None
    axis: int = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros_init()
    scale_init: Initializer = nn.initializers.ones_init()
    axis_name: str | None = None
    axis_index_groups: None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    statistics: str = "batch"
    follows: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        use_running_average: bool | None = None,
        *,
        mask: None = None,
        train: bool | None = None,
    ) -> Array:
        """Normalises `x` by the statistics of the batch or by the running ones.

        Args:
            x: `[..., C]`, floating, with at least one batch axis.
            use_running_average: the mode; None takes the attribute, or `not train` if it is None.
            mask: must be None.
            train: the mode as in `Conv`; None means training if `batch_stats` is mutable.
        """
        self._check(x, mask)
        if self.has_variable(FACTORS, FOLDED):
            return x.astype(self.dtype or x.dtype)
        shape = (x.shape[-1],)
        scale, bias, factors = self._scale_and_bias(shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        var = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)
        record = LayerRecord(
            self.path, "norm", factors=factors, follows=self.follows, epsilon=self.epsilon
        )
        record_layer(self, record)
        if self._is_running(use_running_average, train) or self.statistics == "running":
            y = _affine(x, mean.value, var.value, scale, bias, self.epsilon)
            return y.astype(self.dtype or x.dtype)
        axis = None if self.is_initializing() else self.axis_name
        inputs = vary_alike((x, scale, bias))
        y, batch_mean, batch_var = _normalize(*inputs, self.epsilon, axis)
        if not self.is_initializing():
            count = _count(x, axis)
            unbiased = batch_var * (count / max(count - 1, 1))
            mean.value = self._moved(mean.value, batch_mean)
            var.value = self._moved(var.value, unbiased)
        return y.astype(self.dtype or x.dtype)

    def _check(self, x: Array, mask: Any) -> None:
        check_real("momentum", self.momentum, 0.0, 1.0)
        check_real("epsilon", self.epsilon, 0.0, exclusive_minimum=True)
        check_choice("statistics", self.statistics, STATISTICS)
        check_floating("x", x)
        for name, value in (("mask", mask), ("axis_index_groups", self.axis_index_groups)):
            if value is not None:
                raise ValueError(f"`{name}` must be None; got {value!r}.")
        if self.axis not in (-1, jnp.ndim(x) - 1):
            raise ValueError(f"`axis` must be -1; got {self.axis!r}.")
        if x.ndim < 2:
            raise ValueError(f"`x` must have shape [..., C] with a batch; got {x.shape}.")

    def _scale_and_bias(self, shape: tuple[int]) -> tuple[Array, Array, tuple[Factor, ...]]:
        """Scale and bias, and the factors of those that are parameters."""
        inits = {"scale": self.scale_init, "bias": self.bias_init}
        uses = {"scale": self.use_scale, "bias": self.use_bias}
        factors = tuple(Factor(name, shape, init=inits[name]) for name in inits if uses[name])
        values = {"scale": jnp.ones(shape, self.param_dtype)}
        values["bias"] = jnp.zeros(shape, self.param_dtype)
        for factor in factors:
            values[factor.name] = self.param(factor.name, factor.init, shape, self.param_dtype)
        return values["scale"], values["bias"], factors

    def _is_running(self, use_running_average: bool | None, train: bool | None) -> bool:
        for given in (use_running_average, self.use_running_average):
            if given is not None:
                return given
        return not (self.is_mutable_collection("batch_stats") if train is None else train)

    def _moved(self, old: Array, new: Array) -> Array:
        return self.momentum * old + (1.0 - self.momentum) * lax.stop_gradient(new)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(
    x: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None
) -> tuple[Array, Array, Array]:
    """Normalised `x`, in the wider of its and the scale's dtype, with mean and biased variance.

    Forward: `y = h scale + bias`, `h = (x - mean) / sqrt(var + epsilon)`.
    Backward: with n entries per channel and sums over them, `d scale = sum(dy h)`,
    `d bias = sum(dy)`, `dx = scale / sqrt(var + epsilon) (dy - d bias / n - h d scale / n)`, plus
    `(d mean + 2 (x - mean) d var) / n`.
    With an axis name, n and the sums inside `dx` cover all parts; the cotangents of scale and bias
    are those of this part, for the enclosing transformation to add up.
    Residuals: x, and four numbers per channel. Autodiff would also save `x - mean`.
    """
    mean, var = _moments(x, scale.dtype, axis_name)
    return _affine(x, mean, var, scale, bias, epsilon), mean, var


def _normalize_fwd(
    x: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None
) -> tuple[Any, Any]:
    outputs = _normalize(x, scale, bias, epsilon, axis_name)
    return outputs, (x, scale, bias, outputs[1], outputs[2])


def _normalize_bwd(
    epsilon: float, axis_name: str | None, residuals: Any, cotangents: Any
) -> tuple[Array, Array, Array]:
    x, scale, bias, mean, var = residuals
    dy, d_mean, d_var = cotangents
    mean = wait_for_on_cpu(mean, dy)  # otherwise `x - mean` is kept from the forward pass
    axes, count = tuple(range(x.ndim - 1)), _count(x, axis_name)
    centered = x - mean
    inverse = lax.rsqrt(var + epsilon)
    d_bias = jnp.sum(dy, axes)
    d_scale = jnp.sum(dy * centered, axes) * inverse
    all_scale, all_bias = _over_axis(lax.psum, (d_scale, d_bias), axis_name)
    slope = (2 * d_var - scale * inverse**2 * all_scale) / count
    dx = scale * inverse * dy + slope * centered + (d_mean - scale * inverse * all_bias) / count
    return dx.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


_normalize.defvjp(_normalize_fwd, _normalize_bwd)


def _affine(x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    return (x - mean) * (lax.rsqrt(var + epsilon) * scale) + bias


def _count(x: Array, axis_name: str | None) -> int:
    """Number of entries per channel, in all parts together."""
    num_parts = 1 if axis_name is None else lax.axis_size(axis_name)
    return num_parts * x.size // x.shape[-1]


def _over_axis(reduce: Callable[..., Any], tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else reduce(tree, axis_name)


def _moments(x: Array, dtype: Any, axis_name: str | None = None) -> tuple[Array, Array]:
    """Mean and biased variance per channel, in one pass over `x`.

    `E[x^2] - E[x]^2` cancels where the mean is large, so both are taken of `x - shift`. With the
    mean of one of the N examples as the shift, `(mean - shift)^2 <= (N - 1) var`: the relative
    error of the variance is bounded by about N times the rounding error, whatever the input.
    """
    wide = x.astype(jnp.promote_types(x.dtype, dtype))
    shift = _over_axis(lax.pmean, jnp.mean(wide[0], tuple(range(x.ndim - 2))), axis_name)
    axes = tuple(range(x.ndim - 1))
    shifted = wide - shift
    sums = jnp.mean(shifted, axes), jnp.mean(jnp.square(shifted), axes)
    mean, square = _over_axis(lax.pmean, sums, axis_name)
    return shift + mean, jnp.maximum(square - jnp.square(mean), 0.0)
