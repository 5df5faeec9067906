"""Scalar losses for classification and distillation: computed in float32, with optional masks.

Shapes: `logits` `[..., classes]`; `labels` integers `[...]`; `mask` `[...]`, booleans or weights:
1 for samples that count, 0 for padding. Every loss is a mean over the samples that count (0 if
there are none) and is computed in float32 whatever the model's dtype (float64 stays float64).

If a sample that counts has a label outside `[0, classes)`, concrete labels raise an error, and
traced ones (inside `jax.jit`) make the loss NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mlg_jax._checks import check_real
from mlg_jax._types import Array, Float

__all__ = [
    "accuracy",
    "adaptive",
    "cross_entropy",
    "distillation",
    "kl_divergence",
]


def cross_entropy(
    *,
    logits: Array,
    labels: Array,
    label_smoothing: float = 0.0,
    mask: Array | None = None,
) -> Float[Array, ""]:
    """Softmax cross-entropy, `mean(-sum_c t_c log_softmax(logits)_c)`.

    The target is `t = (1 - s) onehot(label) + s / classes` with `s = label_smoothing`.

    Args:
        logits: `[..., classes]`, unnormalised.
        labels: integers `[...]` in `[0, classes)`.
        label_smoothing: mass in [0, 1] spread evenly over all classes.
        mask: `[...]`; None counts every sample.

    Returns:
        A scalar, in nats.

    Raises:
        TypeError, ValueError: `labels` are not integers or out of range, shapes do not match, or
            `label_smoothing` is outside [0, 1].

    Reference: label smoothing, https://arxiv.org/abs/1512.00567.
    """
    check_real("label_smoothing", label_smoothing, 0.0, 1.0)
    log_probs = jax.nn.log_softmax(_as_float32(logits))
    _check_labels(log_probs, labels, mask)
    hard = -_pick(log_probs, labels)
    if label_smoothing == 0.0:
        return _masked_mean(hard, mask)
    uniform = -jnp.mean(log_probs, axis=-1)
    return _masked_mean((1.0 - label_smoothing) * hard + label_smoothing * uniform, mask)


def kl_divergence(
    *,
    logits: Array,
    teacher_logits: Array,
    temperature: float = 1.0,
    mask: Array | None = None,
) -> Float[Array, ""]:
    """`KL(p || q)` at temperature T, summed over classes and averaged over samples.

    `p = softmax(teacher_logits / T)`, which receives no gradient; `q = softmax(logits / T)`.

    Args:
        logits: `[..., classes]`, the student's.
        teacher_logits: the same shape.
        temperature: T > 0.
        mask: `[...]`; None counts every sample.

    Returns:
        A scalar, in nats. It is *not* multiplied by T^2.

    Raises:
        TypeError, ValueError: `temperature` is not positive, or shapes differ.
    """
    check_real("temperature", temperature, 0.0, exclusive_minimum=True)
    _check_same_shape("teacher_logits", teacher_logits, logits)
    log_q = jax.nn.log_softmax(_as_float32(logits) / temperature)
    teacher = jax.lax.stop_gradient(_as_float32(teacher_logits))
    log_p = jax.nn.log_softmax(teacher / temperature)
    return _masked_mean(_divergence(log_p, log_q), mask)


def distillation(
    *,
    logits: Array,
    teacher_logits: Array,
    labels: Array,
    beta: float = 0.9,
    temperature: float = 3.0,
    label_smoothing: float = 0.0,
    mask: Array | None = None,
) -> Float[Array, ""]:
    """Knowledge distillation, `beta T^2 KL(teacher || student) + (1 - beta) CE`.

    The factor T^2 keeps the scale of the gradient independent of the temperature.

    Args:
        logits: `[..., classes]`, the student's.
        teacher_logits: the same shape; they receive no gradient.
        labels: integers `[...]`.
        beta: weight of the KL term, in [0, 1].
        temperature: T > 0; applies to the KL term only.
        label_smoothing: in [0, 1]; applies to the cross-entropy term only.
        mask: `[...]`; None counts every sample.

    Returns:
        A scalar, in nats.

    Raises:
        TypeError, ValueError: an argument is out of range, or shapes do not match.

    Reference: https://arxiv.org/abs/1503.02531; multi-level in-situ generation,
    https://arxiv.org/abs/2108.11430.
    """
    check_real("beta", beta, 0.0, 1.0)
    soft = kl_divergence(
        logits=logits, teacher_logits=teacher_logits, temperature=temperature, mask=mask
    )
    hard = cross_entropy(logits=logits, labels=labels, label_smoothing=label_smoothing, mask=mask)
    return beta * temperature**2 * soft + (1.0 - beta) * hard


def adaptive(
    *,
    logits: Array,
    teacher_logits: Array,
    clip: float = 1e3,
    mask: Array | None = None,
) -> Float[Array, ""]:
    """Surrogate loss for AlphaNet's adaptive alpha-divergence with alpha in {-1, 1}.

    Let `q = softmax(logits)` and `p = softmax(teacher_logits)`, both treated as constants, and
    `w = p / q`. Each sample uses the larger of `D_-1 = sum q (v - 1) / 2` with
    `v = min(1 / w, clip)`, and `D_1 = sum q w log w` (`D_1` if they are equal). The loss is
    `mean(-sum q rho log_softmax(logits))` with `rho = 1/2 - v` for `D_-1` and `rho = w` for `D_1`.
    Only its gradient is that of the divergence; its value may be negative.

    Args:
        logits: `[..., classes]`, the student's.
        teacher_logits: the same shape.
        clip: upper bound of the importance ratio `v`, > 0.
        mask: `[...]`; None counts every sample.

    Returns:
        A scalar.

    Raises:
        TypeError, ValueError: `clip` is not positive, or shapes differ.

    Reference: AlphaNet, https://arxiv.org/abs/2102.07954.
    """
    check_real("clip", clip, 0.0, exclusive_minimum=True)
    _check_same_shape("teacher_logits", teacher_logits, logits)
    log_student = jax.nn.log_softmax(_as_float32(logits))
    log_q = jax.lax.stop_gradient(log_student)
    log_p = jax.lax.stop_gradient(jax.nn.log_softmax(_as_float32(teacher_logits)))
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    # Ratios as differences of logarithms, so that underflowing probabilities never give 0 / 0.
    v = jnp.minimum(jnp.exp(log_q - log_p), clip)
    divergence_low = jnp.sum(q * (v - 1.0), axis=-1, keepdims=True) / 2.0
    divergence_high = _divergence(log_p, log_q)[..., None]
    q_rho = jnp.where(divergence_low > divergence_high, q * (0.5 - v), p)
    return _masked_mean(-jnp.sum(q_rho * log_student, axis=-1), mask)


def accuracy(*, logits: Array, labels: Array, mask: Array | None = None) -> Float[Array, ""]:
    """Fraction of samples whose largest logit is that of the label (the first if several tie).

    Args:
        logits: `[..., classes]`.
        labels: integers `[...]`.
        mask: `[...]`; None counts every sample.

    Returns:
        A scalar in [0, 1].

    Raises:
        TypeError, ValueError: `labels` are not integers or out of range, or shapes do not match.
    """
    _check_labels(logits, labels, mask)
    return _masked_mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32), mask)


def _as_float32(array: Array) -> Array:
    return jnp.asarray(array, jnp.promote_types(jnp.result_type(array), jnp.float32))


def _pick(log_probs: Array, labels: Array) -> Array:
    """The entry of each label; NaN for labels outside `[0, classes)`."""
    # A negative index would count from the end instead of being out of range.
    index = jnp.where(labels < 0, log_probs.shape[-1], labels.astype(jnp.int32))
    return jnp.take_along_axis(log_probs, index[..., None], axis=-1, mode="fill")[..., 0]


def _divergence(log_p: Array, log_q: Array) -> Array:
    """`KL(p || q)` over the last axis; a class with probability 0 in p adds 0, not NaN."""
    p = jnp.exp(log_p)
    return jnp.sum(p * jnp.where(p > 0, log_p - log_q, 0.0), axis=-1)


def _masked_mean(values: Array, mask: Array | None) -> Array:
    """Weighted mean of `values` `[n, ...]`; a NaN with weight 0 does not affect it."""
    if mask is None:
        return jnp.mean(values)
    _check_mask(mask, values.shape)
    weights = jnp.broadcast_to(
        mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values.shape
    ).astype(values.dtype)
    total = jnp.sum(weights)
    kept = jnp.where(weights > 0, values, 0.0)
    return jnp.sum(kept * weights) / jnp.where(total > 0, total, 1.0)


def _check_mask(mask: Array | None, shape: tuple[int, ...]) -> None:
    if mask is not None and mask.shape != shape[: mask.ndim]:
        raise ValueError(
            f"`mask` must have the shape of the samples, {shape[: mask.ndim]}; got {mask.shape}."
        )


def _check_same_shape(name: str, array: Array, like: Array) -> None:
    if jnp.shape(array) != jnp.shape(like):
        raise ValueError(f"`{name}` must have shape {jnp.shape(like)}; got {jnp.shape(array)}.")


def _check_labels(logits: Array, labels: Array, mask: Array | None) -> None:
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise TypeError(f"`labels` must be integers; got {jnp.result_type(labels)}.")
    if jnp.shape(labels) != jnp.shape(logits)[:-1]:
        raise ValueError(
            f"`labels` must have shape {jnp.shape(logits)[:-1]}; got {jnp.shape(labels)}."
        )
    if isinstance(labels, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        return
    _check_mask(mask, jnp.shape(labels))
    counted = np.asarray(labels) if mask is None else np.asarray(labels)[np.asarray(mask) != 0]
    num_classes = jnp.shape(logits)[-1]
    wrong = counted[(counted < 0) | (counted >= num_classes)]
    if wrong.size:
        raise ValueError(
            f"`labels` must be in [0, {num_classes - 1}] where `mask` counts them; "
            f"got {wrong.flat[0]}."
        )
