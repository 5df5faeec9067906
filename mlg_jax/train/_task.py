"""The task that a run trains on, and the ways in which a run ends."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mlg_jax._checks import check_integer
from mlg_jax.train._partition import TrainableRule
from mlg_jax.train._state import TrainState
from mlg_jax.train._step import LossFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """The functions that define a training task.

    Args:
        loss_fn: `(params, model_state, batch, key, train) -> (loss, (metrics, new_model_state))`;
            loss and metrics are scalars, means over the unmasked examples of the batch.
        batches: `(epoch, first) -> iterator` over the batches of an epoch from number `first` on,
            both counted from 0. It must yield the rows of this process, and the same batches for
            the same arguments.
        steps_per_epoch: batches per epoch, >= 1.
        eval_batches: makes an iterator over the validation set; None skips evaluation.
        eval_loss_fn: like `loss_fn`, called with `train=False`; None uses `loss_fn`.
        exact_loss_fn: like `loss_fn`; repeats a batch whose loss is finite but whose gradients are
            not. None stops the run at such a batch.
        on_overflow: called with the state and the batch after every exact step; returns a new
            `loss_fn`, or None to keep the current one. It must not keep references to the arrays
            of the state, which the next step donates.
        on_epoch_end: likewise, called with the last batch at the end of every epoch but the last.
        is_trainable: whether the parameter with a given name ("block/kernel") is trained; None
            trains all. Frozen parameters are neither differentiated nor updated.

    Raises:
        TypeError, ValueError: `steps_per_epoch` is not a positive integer.
    """

    loss_fn: LossFn
    batches: Callable[[int, int], Iterator[Any]]
    steps_per_epoch: int
    eval_batches: Callable[[], Iterable[Any]] | None = None
    eval_loss_fn: LossFn | None = None
    exact_loss_fn: LossFn | None = None
    on_overflow: Callable[[TrainState, Any], LossFn | None] | None = None
    on_epoch_end: Callable[[TrainState, Any], LossFn | None] | None = None
    is_trainable: TrainableRule | None = None

    def __post_init__(self) -> None:
        check_integer("steps_per_epoch", self.steps_per_epoch, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The final state, the last evaluation, and the step and value of the best one."""

    state: TrainState
    metrics: dict[str, float]
    best_step: int | None
    best_value: float | None


class NonFiniteError(RuntimeError):
    """A loss or a gradient is not finite; its update was not applied.

    Attributes:
        step: number of updates before the failure, and so the number of the failed batch, from 0.
    """

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step
