"""Losses as scalars: cross-entropy, regression, distillation; float32, keyword-only, masked.

Shapes: `logits` `[..., classes]`; `labels` integers `[...]`; `mask` `[...]`, booleans or weights,
1 for the samples that count and 0 for padding. Every loss is a mean over the samples that count
(0 when none does), computed in float32 whatever the model's dtype (float64 stays float64).

A label outside `[0, classes)` of a sample that counts is an error where labels are known, and makes
the loss NaN where they are traced (inside `jax.jit`).
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
        TypeError, ValueError: labels that are no integers or no classes, shapes that do not fit,
            smoothing outside [0, 1].

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
    """`KL(p || q)` at temperature T, summed over classes, averaged over samples.

    `p = softmax(teacher / T)`, a constant to autodiff; `q = softmax(logits / T)`.

    Args:
        logits: `[..., classes]`, the student's.
        teacher_logits: the same shape.
        temperature: T > 0.
        mask: `[...]`; None counts every sample.

    Returns:
        A scalar, in nats. It is *not* multiplied by T^2.

    Raises:
        TypeError, ValueError: a temperature that is not positive, or shapes that differ.
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

    T^2 keeps the gradient's scale independent of the temperature.

    Args:
        logits: `[..., classes]`, the student's.
        teacher_logits: the same shape; constants to autodiff.
        labels: integers `[...]`.
        beta: weight of the teacher, in [0, 1].
        temperature: T > 0, of the KL term only.
        label_smoothing: of the cross-entropy term, in [0, 1].
        mask: `[...]`; None counts every sample.

    Returns:
        A scalar, in nats.

    Raises:
        TypeError, ValueError: an argument out of range, or shapes that do not fit.

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
    """AlphaNet's adaptive alpha-divergence with alpha in {-1, 1}, as a surrogate.

    `q = softmax(logits)`, `p = softmax(teacher)`, both constants; `w = p / q`. Of the divergences
    `D_-1 = sum q (v - 1) / 2`, `v = min(1 / w, clip)`, and `D_1 = sum q w log w`, each sample takes
    the larger (the latter when they tie), and the loss is `mean(-sum q rho log_softmax(logits))`
    with `rho = 1/2 - v` or `w`. Its gradient is meant; its value may be negative.

    Args:
        logits: `[..., classes]`, the student's.
        teacher_logits: the same shape.
        clip: largest importance ratio `v`, > 0.
        mask: `[...]`; None counts every sample.

    Returns:
        A scalar.

    Raises:
        TypeError, ValueError: a clip that is not positive, or shapes that differ.

    Reference: AlphaNet, https://arxiv.org/abs/2102.07954.
    """
    check_real("clip", clip, 0.0, exclusive_minimum=True)
    _check_same_shape("teacher_logits", teacher_logits, logits)
    log_student = jax.nn.log_softmax(_as_float32(logits))
    log_q = jax.lax.stop_gradient(log_student)
    log_p = jax.lax.stop_gradient(jax.nn.log_softmax(_as_float32(teacher_logits)))
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    # Quotients as differences of logarithms: a probability that underflows makes no 0 / 0.
    v = jnp.minimum(jnp.exp(log_q - log_p), clip)
    divergence_low = jnp.sum(q * (v - 1.0), axis=-1, keepdims=True) / 2.0
    divergence_high = _divergence(log_p, log_q)[..., None]
    q_rho = jnp.where(divergence_low > divergence_high, q * (0.5 - v), p)
    return _masked_mean(-jnp.sum(q_rho * log_student, axis=-1), mask)


def accuracy(*, logits: Array, labels: Array, mask: Array | None = None) -> Float[Array, ""]:
    """Share of samples whose largest logit is the label's (the first one of equal logits).

    Args:
        logits: `[..., classes]`.
        labels: integers `[...]`.
        mask: `[...]`; None counts every sample.

    Returns:
        A scalar in [0, 1].

    Raises:
        TypeError, ValueError: labels that are no integers or no classes, or shapes that do not
            fit.
    """
    _check_labels(logits, labels, mask)
    return _masked_mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32), mask)


def _as_float32(array: Array) -> Array:
    return jnp.asarray(array, jnp.promote_types(jnp.result_type(array), jnp.float32))


def _pick(log_probs: Array, labels: Array) -> Array:
    """The entry of each label; NaN outside the classes, where an index -1 would be the last one."""
    index = jnp.where(labels < 0, log_probs.shape[-1], labels.astype(jnp.int32))
    return jnp.take_along_axis(log_probs, index[..., None], axis=-1, mode="fill")[..., 0]


def _divergence(log_p: Array, log_q: Array) -> Array:
    """`KL(p || q)` over the last axis; a class of probability 0 in p adds 0, not NaN."""
    p = jnp.exp(log_p)
    return jnp.sum(p * jnp.where(p > 0, log_p - log_q, 0.0), axis=-1)


def _masked_mean(values: Array, mask: Array | None) -> Array:
    """Mean of `values` `[n, ...]` over the samples with weight; a masked NaN does not leak."""
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
            f"`mask` must have the samples' shape {shape[: mask.ndim]}; got {mask.shape}."
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
