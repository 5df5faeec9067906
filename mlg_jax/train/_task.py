"""What is trained, as functions, and how a run ended."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mlg_jax._checks import check_integer
from mlg_jax.train._partition import TrainableRule
from mlg_jax.train._state import TrainState
from mlg_jax.train._step import LossFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained, as functions.

    Args:
        loss_fn: `(params, model_state, batch, key, train) -> (loss, (metrics, new_model_state))`;
            loss and metrics are scalars, means over the batch's examples that count.
        batches: from an epoch and the number of the first batch wanted, both from 0, to an
            iterator over the rest of that epoch: this process's rows, the same for the same
            arguments.
        steps_per_epoch: batches an epoch has, >= 1.
        eval_batches: makes an iterator over the validation set; None does not evaluate.
        eval_loss_fn: like `loss_fn`, called with `train=False`; None: `loss_fn`.
        exact_loss_fn: like `loss_fn`, for the batch whose gradients came out non-finite though
            its loss is finite; None: such a batch stops the run.
        on_overflow: called with the state and the batch after every exact step; returns the
            `loss_fn` to go on with, or None to keep the present one. It must not keep the state's
            arrays, whose memory the next step reuses.
        on_epoch_end: the same, called at the end of every epoch but the last, with its last batch.
        is_trainable: from a parameter's name ("block/kernel") to whether it is trained; None: all
            are. The others stay as they are, and nothing is differentiated with respect to them.

    Raises:
        TypeError, ValueError: a number of steps that is not positive.
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
    """How a run ended: the last state, the last evaluation, the best one's step and value."""

    state: TrainState
    metrics: dict[str, float]
    best_step: int | None
    best_value: float | None


class NonFiniteError(RuntimeError):
    """A loss or a gradient is not finite; no update was made with it.

    Attributes:
        step: number of updates made before the failing one, which is also the failing batch's
            number, counted from 0.
    """

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step
