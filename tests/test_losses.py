"""Losses against the published code's numbers and against float64 NumPy definitions."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import losses

REFERENCE = np.load(pathlib.Path(__file__).parent / "reference" / "losses.npz")
RTOL = 1e-6  # reference/README.md: losses 1e-6, of the largest entry


def log_softmax(x):
    x = np.asarray(x, np.float64)
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def oracle_cross_entropy(logits, labels, smoothing):
    classes = logits.shape[-1]
    target = np.full(logits.shape, smoothing / classes)
    target[np.arange(len(labels)), labels] += 1.0 - smoothing
    return -(target * log_softmax(logits)).sum(-1)


def oracle_kl(student, teacher, temperature):
    log_p, log_q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def numeric_gradient(f, x, eps=1e-6):
    grad = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += eps
        down[index] -= eps
        grad[index] = (f(up) - f(down)) / (2 * eps)
    return grad


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 5)) * 3
    teacher = rng.normal(size=(6, 5)) * 2
    return logits, teacher, rng.integers(0, 5, 6), np.array([1, 0, 1, 1, 0, 1])


def f32(x):
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize(("temperature", "beta"), [(3, 0.9), (6, 0.9), (2, 0.5)])
def test_distillation_matches_the_reference(temperature, beta):
    def loss(student):
        return losses.distillation(
            logits=student,
            teacher_logits=jnp.asarray(REFERENCE["teacher"]),
            labels=jnp.asarray(REFERENCE["labels"], jnp.int32),
            temperature=temperature,
            beta=beta,
        )

    value, grad = jax.value_and_grad(loss)(jnp.asarray(REFERENCE["student"]))
    prefix = f"mixed_kl/T{temperature}_a{beta}"
    expected = REFERENCE[f"{prefix}/ds"]
    np.testing.assert_allclose(value, REFERENCE[f"{prefix}/loss"], rtol=RTOL)
    np.testing.assert_allclose(grad, expected, atol=RTOL * np.abs(expected).max())


def test_adaptive_matches_the_reference():
    def loss(student):
        return losses.adaptive(logits=student, teacher_logits=jnp.asarray(REFERENCE["teacher"]))

    value, grad = jax.value_and_grad(loss)(jnp.asarray(REFERENCE["student"]))
    expected = REFERENCE["adaptive/ds"]
    np.testing.assert_allclose(value, REFERENCE["adaptive/loss"], rtol=RTOL)
    np.testing.assert_allclose(grad, expected, atol=RTOL * np.abs(expected).max())


def test_adaptive_against_its_definition(batch):
    """Both alphas and the clip are visited, and the gradient is that of the frozen weights."""
    logits, teacher, _, mask = batch
    teacher[0] = -3 * logits[0]  # ratios beyond the clip, in a sample that counts
    q, p = np.exp(log_softmax(logits)), np.exp(log_softmax(teacher))
    w = p / q
    v = np.minimum(1 / w, 1e3)
    low, high = (q * (v - 1)).sum(-1) / 2, (q * w * np.log(w)).sum(-1)
    assert (low > high).any() and (low <= high).any() and (1 / w > 1e3).any()
    q_rho = q * np.where((low > high)[:, None], 0.5 - v, w)
    per_sample = -(q_rho * log_softmax(logits)).sum(-1)
    expected_grad = (q_rho.sum(-1, keepdims=True) * q - q_rho) * mask[:, None] / mask.sum()

    def loss(x):
        return losses.adaptive(logits=x, teacher_logits=f32(teacher), mask=jnp.asarray(mask, bool))

    value, grad = jax.value_and_grad(loss)(f32(logits))
    np.testing.assert_allclose(value, (per_sample * mask).sum() / mask.sum(), rtol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-5 * np.abs(expected_grad).max())


def test_adaptive_is_finite_at_extreme_logits():
    logits = f32([[200.0, 0.0, -200.0]])

    def loss(x):
        return losses.adaptive(logits=x, teacher_logits=-logits)

    value, grad = jax.value_and_grad(loss)(logits)
    assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("is_masked", [False, True])
def test_cross_entropy_against_the_oracle(batch, smoothing, is_masked):
    logits, _, labels, mask = batch
    weights = mask if is_masked else np.ones(6)

    def oracle(x):
        return (oracle_cross_entropy(x, labels, smoothing) * weights).sum() / weights.sum()

    def loss(x):
        return losses.cross_entropy(
            logits=x,
            labels=jnp.asarray(labels),
            label_smoothing=smoothing,
            mask=jnp.asarray(mask) if is_masked else None,
        )

    value, grad = jax.value_and_grad(loss)(f32(logits))
    np.testing.assert_allclose(value, oracle(logits), rtol=RTOL)
    np.testing.assert_allclose(grad, numeric_gradient(oracle, logits), atol=1e-6)


def test_distillation_mask_and_smoothing_against_the_oracle(batch):
    logits, teacher, labels, mask = batch
    soft = (oracle_kl(logits, teacher, 4.0) * mask).sum() / mask.sum()
    hard = (oracle_cross_entropy(logits, labels, 0.2) * mask).sum() / mask.sum()
    value = losses.distillation(
        logits=f32(logits),
        teacher_logits=f32(teacher),
        labels=jnp.asarray(labels),
        beta=0.7,
        temperature=4.0,
        label_smoothing=0.2,
        mask=jnp.asarray(mask),
    )
    np.testing.assert_allclose(value, 0.7 * 16 * soft + 0.3 * hard, rtol=RTOL)


def test_teachers_are_constants(batch):
    logits, teacher, _, _ = batch
    for loss in (losses.kl_divergence, losses.adaptive):
        grad = jax.grad(lambda t, loss=loss: loss(logits=f32(logits), teacher_logits=t))(
            f32(teacher)
        )
        assert not np.any(grad)


def test_accuracy(batch):
    logits, _, _, mask = batch
    labels = logits.argmax(-1)
    labels[0] = (labels[0] + 1) % 5
    values = {"logits": f32(logits), "labels": jnp.asarray(labels)}
    np.testing.assert_allclose(losses.accuracy(**values), 5 / 6, rtol=RTOL)
    np.testing.assert_allclose(losses.accuracy(**values, mask=jnp.asarray(mask)), 3 / 4)


def test_losses_are_computed_in_float32(batch):
    logits, _, labels, _ = batch
    rounded = jnp.asarray(logits, jnp.bfloat16)
    value = losses.cross_entropy(logits=rounded, labels=jnp.asarray(labels))
    expected = oracle_cross_entropy(np.asarray(rounded, np.float64), labels, 0.0).mean()
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=RTOL)


def test_a_nan_in_the_padding_does_not_reach_the_loss(batch):
    logits, _, labels, mask = batch
    poisoned = jnp.where(jnp.asarray(mask)[:, None] == 1, f32(logits), jnp.inf)
    value = losses.cross_entropy(
        logits=poisoned, labels=jnp.asarray(labels), mask=jnp.asarray(mask)
    )
    expected = (oracle_cross_entropy(logits, labels, 0.0) * mask).sum() / mask.sum()
    np.testing.assert_allclose(value, expected, rtol=RTOL)


@pytest.mark.parametrize("label", [-1, 5, 255])
def test_a_traced_label_outside_the_classes_makes_the_loss_nan(batch, label):
    logits, _, labels, _ = batch
    wrong = jnp.asarray(labels).at[0].set(label)
    assert np.isnan(jax.jit(lambda y: losses.cross_entropy(logits=f32(logits), labels=y))(wrong))


def test_labels_of_padding_may_be_anything(batch):
    logits, _, labels, _ = batch
    mask = np.array([0, 1, 1, 1, 1, 1])
    wrong = jnp.asarray(labels).at[0].set(-1)

    def loss(x, y):
        return losses.cross_entropy(logits=x, labels=y, mask=jnp.asarray(mask))

    value, gradient = jax.value_and_grad(loss)(f32(logits), wrong)
    expected = (oracle_cross_entropy(logits, labels, 0.0) * mask).sum() / 5
    np.testing.assert_allclose(value, expected, rtol=RTOL)
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[0])


@pytest.mark.bad_input
@pytest.mark.parametrize("label", [-1, 5])
def test_a_known_label_outside_the_classes_is_an_error(batch, label):
    logits, _, labels, _ = batch
    wrong = np.array(labels)
    wrong[2] = label
    for loss in (losses.cross_entropy, losses.accuracy):
        with pytest.raises(ValueError, match=rf"`labels` must be in \[0, 4\] .* got {label}\."):
            loss(logits=f32(logits), labels=jnp.asarray(wrong))


@pytest.mark.parametrize("loss", [losses.kl_divergence, losses.adaptive])
def test_a_class_that_the_teacher_rules_out_adds_nothing(batch, loss):
    logits, teacher, _, _ = batch
    ruled_out = f32(teacher).at[:, 1].set(-jnp.inf)
    very_low = f32(teacher).at[:, 1].set(-80.0)

    def value(x, teacher):
        return loss(logits=x, teacher_logits=teacher)

    got = jax.value_and_grad(value)(f32(logits), ruled_out)
    for a, b in zip(got, jax.value_and_grad(value)(f32(logits), very_low), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_an_empty_mask_gives_zero(batch):
    logits, _, labels, _ = batch
    loss = losses.cross_entropy(
        logits=f32(logits), labels=jnp.asarray(labels), mask=jnp.zeros(6, bool)
    )
    assert loss == 0.0


@pytest.mark.bad_input
def test_error_messages(batch):
    logits, teacher, labels, _ = batch
    logits, teacher, labels = f32(logits), f32(teacher), jnp.asarray(labels)
    with pytest.raises(TypeError, match="`labels` must be integers; got float32"):
        losses.cross_entropy(logits=logits, labels=labels.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"`labels` must have shape \(6,\); got \(5,\)"):
        losses.cross_entropy(logits=logits, labels=labels[:5])
    with pytest.raises(ValueError, match=r"`label_smoothing` must be .*; got 1.5"):
        losses.cross_entropy(logits=logits, labels=labels, label_smoothing=1.5)
    with pytest.raises(
        ValueError, match=r"`mask` must have the shape of the samples, \(6,\); got \(5,\)"
    ):
        losses.cross_entropy(logits=logits, labels=labels, mask=jnp.ones(5))
    with pytest.raises(ValueError, match="`temperature` must be .*; got 0"):
        losses.kl_divergence(logits=logits, teacher_logits=teacher, temperature=0)
    with pytest.raises(ValueError, match=r"`teacher_logits` must have shape \(6, 5\)"):
        losses.adaptive(logits=logits, teacher_logits=teacher[:3])
    with pytest.raises(ValueError, match="`beta` must be .*; got -1"):
        losses.distillation(logits=logits, teacher_logits=teacher, labels=labels, beta=-1)
