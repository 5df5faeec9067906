"""A short training of a compressed network on the original's predictions."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from mlg_jax import losses
from mlg_jax._checks import check_integer, check_real
from mlg_jax._types import Array, Float, Key
from mlg_jax.compress._sensitivity import check_images
from mlg_jax.data import batch_indices
from mlg_jax.layers import forward, random_streams
from mlg_jax.train import OptimizerSpec, ScheduleSpec, Task, TrainSpec, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationSpec:
    """How a compressed network is trained on the original's predictions, without labels.

    Args:
        num_epochs: epochs over the calibration images, >= 1.
        batch_size: images per step, from 1 to the number of images.
        learning_rate: initial rate of AdamW, > 0, decayed to zero by a cosine schedule.
        temperature: T in the loss `T^2 KL(original || compressed)`, > 0.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    num_epochs: int = 1
    batch_size: int = 128
    learning_rate: float = 2e-3
    temperature: float = 3.0

    def __post_init__(self) -> None:
        check_integer("num_epochs", self.num_epochs, 1)
        check_integer("batch_size", self.batch_size, 1)
        check_real("learning_rate", self.learning_rate, 0.0, exclusive_minimum=True)
        check_real("temperature", self.temperature, 0.0, exclusive_minimum=True)


_DEFAULT = DistillationSpec()


def distill(
    model: nn.Module,
    variables: Mapping[str, Any],
    teacher: nn.Module,
    teacher_variables: Mapping[str, Any],
    images: Float[Array, "n h w c"],
    *,
    spec: DistillationSpec = _DEFAULT,
    key: Key,
) -> dict[str, Any]:
    """Trains all parameters on the teacher's predictions for the images.

    Args:
        model: the network to train.
        variables: its initial variables.
        teacher: the original network.
        teacher_variables: the original's variables.
        images: `[N, H, W, C]`, normalised for both networks.
        spec: duration and hyperparameters.
        key: seeds the random streams and the order of the images.

    Returns:
        The trained variables.

    Raises:
        NonFiniteError: a loss or gradient is not finite.
        TypeError, ValueError: `images` is empty or smaller than a batch.
    """
    check_images(images)
    check_integer("batch_size", spec.batch_size, 1, len(images))
    pixels, seed = np.asarray(images), int(jax.random.bits(key) >> 1)
    evaluate = forward(teacher, train=False)
    teach = jax.jit(lambda batch: evaluate(teacher_variables, batch))

    def batches(epoch: int, first: int) -> Iterator[dict[str, Array]]:
        for rows in batch_indices(seed, epoch, len(pixels), spec.batch_size)[first:]:
            yield {"image": pixels[rows], "teacher_logits": teach(pixels[rows])}

    def loss_fn(params: Any, state: Any, batch: Any, key: Key, is_training: bool) -> Any:
        run = forward(model, train=is_training)
        logits, state = run(
            {"params": params, **state},
            batch["image"],
            mutable=list(state),
            rngs=random_streams(key),
        )
        divergence = losses.kl_divergence(
            logits=logits, teacher_logits=batch["teacher_logits"], temperature=spec.temperature
        )
        return spec.temperature**2 * divergence, ({}, dict(state))

    loop = TrainSpec(
        num_epochs=spec.num_epochs,
        optimizer=OptimizerSpec(name="adamw", weight_decay=0.0),
        schedule=ScheduleSpec(name="cosine", learning_rate=spec.learning_rate),
    )
    result = train(
        Task(loss_fn=loss_fn, batches=batches, steps_per_epoch=len(pixels) // spec.batch_size),
        loop,
        params=variables["params"],
        model_state={name: value for name, value in variables.items() if name != "params"},
        key=key,
    )
    return {"params": result.state.params, **result.state.model_state}
