"""Batches prepared on the device, and the losses of teacher and student."""

import functools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlg_jax import losses
from mlg_jax._platform import traced_platform
from mlg_jax.config import StudentConfig
from mlg_jax.data import Dataset, evaluation_views
from mlg_jax.layers import layer_records, quantized_variables, random_streams, total_penalty
from mlg_jax.train import LossFn, Task, TrainableRule

Batch = dict[str, jax.Array]
EVAL_METRICS = ("accuracy", "loss")
Prepare = Callable[[jax.Array, Batch], Batch]


class Batches:
    """Batches of a data set as the losses need them: augmented, normalised, with teacher logits.

    The key of the augmentation depends only on seed, epoch and step, so that a resumed run sees the
    same pixels. The teacher's logits are part of the batch, so the training step needs no teacher.
    """

    def __init__(self, dataset: Dataset, key: jax.Array, teach: Callable | None = None) -> None:
        self._dataset, self._key, self._teach = dataset, key, teach
        preprocessing = dataset.preprocessing

        def augmented(key: jax.Array, epoch: int, step: int, image: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.fold_in(key, epoch), step)
            return preprocessing.normalize(preprocessing.augment(key, image, epoch))

        self._augmented = jax.jit(augmented)
        self._normalized = jax.jit(preprocessing.normalize)

    def train(self, epoch: int, start_step: int) -> Generator[Batch, None, None]:
        """The batches of an epoch from `start_step` on."""
        batches = self._dataset.train_batches(epoch, start_step)
        for step, batch in enumerate(batches, start_step):
            image = self._augmented(self._key, epoch, step, batch["image"])
            yield self._taught({**batch, "image": image})

    def validation(self) -> Iterator[Batch]:
        """The validation set, in order."""
        for batch in self._dataset.validation_batches():
            yield {**batch, "image": self._normalized(batch["image"])}

    def test(self) -> Iterator[Batch]:
        """The test set, in order; only for the end of an experiment."""
        for batch in self._dataset.test_batches():
            yield {**batch, "image": self._normalized(batch["image"])}

    def _taught(self, batch: Batch) -> Batch:
        if self._teach is None:
            return batch
        return {**batch, "teacher_logits": self._teach(batch["image"])}


def make_task(
    dataset: Dataset,
    batches: Batches,
    loss_fn: LossFn,
    eval_loss_fn: LossFn,
    is_trainable: TrainableRule | None = None,
    **overflow: Any,
) -> Task:
    """A stage's task; without a validation set, nothing is evaluated.

    `overflow` holds `exact_loss_fn`, `on_overflow` and `on_epoch_end`, for a loss whose policy may
    overflow.
    """
    return Task(
        loss_fn=loss_fn,
        eval_loss_fn=eval_loss_fn,
        batches=batches.train,
        steps_per_epoch=dataset.steps_per_epoch,
        eval_batches=batches.validation if dataset.num_validation else None,
        is_trainable=is_trainable,
        **overflow,
    )


def classification_loss(
    model: nn.Module, label_smoothing: float = 0.0, *, is_augmented: bool = False
) -> LossFn:
    """Cross-entropy with the labels: the teacher's training loss, and every evaluation.

    `is_augmented` evaluates the mean of the logits over `evaluation_views`.
    """

    def loss_fn(params: Any, state: Any, batch: Batch, key: jax.Array, train: bool) -> Any:
        run = functools.partial(forward, model, params, state, key=key, train=train)
        if is_augmented and not train:
            views, weights = evaluation_views(batch["image"])
            logits, new_state = run(views.reshape(-1, *views.shape[2:]))
            logits = jnp.tensordot(weights, logits.reshape(*views.shape[:2], -1), 1)
        else:
            logits, new_state = run(batch["image"])
        labels, mask = batch["label"], batch.get("mask")
        loss = losses.cross_entropy(
            logits=logits,
            labels=labels,
            mask=mask,
            label_smoothing=label_smoothing if train else 0.0,
        )
        accuracy = losses.accuracy(logits=logits, labels=labels, mask=mask)
        return loss, ({"accuracy": accuracy}, new_state)

    return loss_fn


def student_loss(model: nn.Module, input_shape: tuple[int, ...], config: StudentConfig) -> LossFn:
    """The student's training loss: the configured loss plus the orthogonality penalty."""
    records = layer_records(model, input_shape)

    def data_term(logits: jax.Array, batch: Batch) -> jax.Array:
        if config.loss == "adaptive":
            return losses.adaptive(logits=logits, teacher_logits=batch["teacher_logits"])
        smoothing = config.label_smoothing
        if config.loss == "cross_entropy":
            return losses.cross_entropy(
                logits=logits, labels=batch["label"], label_smoothing=smoothing
            )
        return losses.distillation(
            logits=logits,
            teacher_logits=batch["teacher_logits"],
            beta=config.beta,
            temperature=config.temperature,
            labels=batch["label"],
            label_smoothing=smoothing,
        )

    def loss_fn(params: Any, state: Any, batch: Batch, key: jax.Array, train: bool) -> Any:
        logits, state = forward(model, params, state, batch["image"], key, train)
        penalty = total_penalty(records, params)
        loss = data_term(logits, batch) + config.penalty * penalty
        accuracy = losses.accuracy(logits=logits, labels=batch["label"])
        return loss, ({"accuracy": accuracy, "penalty": penalty}, state)

    return loss_fn


def forward(
    model: nn.Module, params: Any, state: Any, image: jax.Array, key: jax.Array, train: bool
) -> Any:
    """Logits and updated collections; training uses the random streams.

    Off CPUs, where every launch costs, the factors of all layers are quantised together.
    """
    variables = {"params": params, **state}
    if traced_platform() != "cpu":
        records = layer_records(model, image.shape, is_training=train)
        variables = quantized_variables(records, variables, key if train else None)
    if not train:
        return model.apply(variables, image), state
    rngs = random_streams(key)
    logits, updated = model.apply(variables, image, train=True, mutable=list(state), rngs=rngs)
    return logits, dict(updated)
