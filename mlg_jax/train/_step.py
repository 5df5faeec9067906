"""Training and evaluation steps as pure, jitted functions of a state and a batch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from mlg_jax._checks import check_choice, check_integer
from mlg_jax.train._mesh import replicated, sharded
from mlg_jax.train._metrics import MetricSums, num_valid, weigh
from mlg_jax.train._partition import TrainableRule, merge_params, split_params
from mlg_jax.train._pruning import MaskUpdate, apply_masks
from mlg_jax.train._state import TrainState, are_finite, select

# (params, model_state, batch, key, train) -> (loss, (metrics, new model_state)). The loss and the
# metrics are scalars, means over the unmasked examples; `train` is a Python bool.
LossFn = Callable[[Any, Any, Any, Any, bool], tuple[jax.Array, tuple[Mapping[str, Any], Any]]]


class StepReport(struct.PyTreeNode):
    """The result of a step besides the new state."""

    sums: MetricSums  # the loss and the metrics of this batch
    is_applied: jax.Array  # bool scalar: the update was applied
    is_overflow: jax.Array  # bool scalar: the update was discarded; repeat it with the exact step


TrainStep = Callable[[TrainState, Any], tuple[TrainState, StepReport]]
EvalStep = Callable[[Any, Any, Any], MetricSums]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    *,
    accumulation_steps: int = 1,
    when_gradient_breaks: str = "freeze",
    num_repeats: int = 0,
    is_trainable: TrainableRule | None = None,
    update_masks: MaskUpdate | None = None,
) -> TrainStep:
    """Makes a jitted training step, which donates the state it is given.

    The update is applied only if the loss, all gradients and all parameter updates are finite.
    Otherwise it is discarded on the device, and all arrays of the state keep their values. A
    non-finite loss also freezes the state, so that later steps change nothing until the host
    notices. A non-finite gradient does the same under "freeze"; under "report" the step only sets
    `StepReport.is_overflow`, so that the caller can repeat the batch.

    Args:
        loss_fn: see `LossFn`.
        optimizer: as returned by `make_optimizer`.
        mesh: as returned by `make_mesh`; the batch must be sharded over it.
        accumulation_steps: number of micro-batches, processed in turn by `lax.scan`. Micro-batch
            `i` holds the rows `i, i + accumulation_steps, ...`, so that rows stay on their device.
        when_gradient_breaks: "freeze" or "report".
        num_repeats: added to `num_overflows` if the update is applied: 1 for an exact step.
        is_trainable: the rule that the state was created with. Only the parameters it selects are
            differentiated and updated; no residuals are kept for the gradients of the others.
        update_masks: `(masks, params, step) -> masks`, called after each update; None keeps the
            masks of the state. Where a mask is False, gradient and updated parameter are zero.

    Returns:
        A jitted function `(state, batch) -> (state, StepReport)`.

    Raises:
        TypeError, ValueError: `when_gradient_breaks` is unknown, or `accumulation_steps` is not a
            positive integer.
    """
    check_choice("when_gradient_breaks", when_gradient_breaks, ("freeze", "report"))
    check_integer("accumulation_steps", accumulation_steps, 1)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, StepReport]:
        key = jax.random.fold_in(state.key, state.step)
        trained, frozen = split_params(state.params, is_trainable)

        def partial_loss(trained: Any, *args: Any) -> Any:
            return loss_fn(merge_params(trained, frozen), *args)

        def evaluate(trained: Any) -> tuple[Any, MetricSums, Any]:
            return _accumulated_gradients(
                partial_loss, trained, state.model_state, batch, key, accumulation_steps
            )

        grads, sums, model_state = evaluate(trained)
        updates, opt_state = optimizer.update(
            apply_masks(grads, state.masks),
            state.opt_state,
            trained,
            grad_fn=lambda trained, _: apply_masks(evaluate(trained)[0], state.masks),
        )
        trained, masks = optax.apply_updates(trained, updates), state.masks
        if update_masks is not None:
            masks = update_masks(masks, trained, state.step + 1)
        updated = state.replace(
            step=state.step + 1,
            params=merge_params(apply_masks(trained, masks), frozen),
            model_state=model_state,
            opt_state=opt_state,
            num_overflows=state.num_overflows + num_repeats,
            masks=masks,
        )
        is_loss_finite = jnp.isfinite(sums.totals["loss"])
        # The updates as well: those of SAM depend on a second gradient.
        is_gradient_finite = are_finite((grads, updates))
        return _settle(
            state,
            updated,
            sums,
            is_loss_finite,
            is_gradient_finite,
            is_freezing=when_gradient_breaks == "freeze",
        )

    everywhere, by_rows = replicated(mesh), sharded(mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(everywhere, by_rows),
        out_shardings=(everywhere, everywhere),
    )


def make_eval_step(loss_fn: LossFn, mesh: Mesh) -> EvalStep:
    """Makes a jitted evaluation step, which calls `loss_fn(..., train=False)` with a constant key.

    Args:
        loss_fn: see `LossFn`.
        mesh: as returned by `make_mesh`; the batch must be sharded over it.

    Returns:
        A jitted function `(params, model_state, batch) -> MetricSums`.
    """

    def step(params: Any, model_state: Any, batch: Any) -> MetricSums:
        loss, (metrics, _) = loss_fn(params, model_state, batch, jax.random.key(0), False)
        return weigh({**metrics, "loss": loss}, num_valid(batch))

    everywhere, by_rows = replicated(mesh), sharded(mesh)
    return jax.jit(step, in_shardings=(everywhere, everywhere, by_rows), out_shardings=everywhere)


def _settle(
    state: TrainState,
    updated: TrainState,
    sums: MetricSums,
    is_loss_finite: jax.Array,
    is_gradient_finite: jax.Array,
    *,
    is_freezing: bool,
) -> tuple[TrainState, StepReport]:
    """Selects the updated state or, if it is not finite, the old one, frozen if necessary."""
    is_frozen = state.is_loss_broken | state.is_gradient_broken
    is_applied = is_loss_finite & is_gradient_finite & ~is_frozen
    breaks_gradient = ~is_frozen & is_loss_finite & ~is_gradient_finite
    settled = select(is_applied, updated, state).replace(
        is_loss_broken=state.is_loss_broken | (~is_frozen & ~is_loss_finite),
        is_gradient_broken=state.is_gradient_broken | (breaks_gradient & is_freezing),
    )
    kept = jax.tree.map(lambda total: jnp.where(is_applied, total, 0.0), sums)
    is_overflow = breaks_gradient & (not is_freezing)
    return settled, StepReport(sums=kept, is_applied=is_applied, is_overflow=is_overflow)


def _gradients(
    loss_fn: LossFn, params: Any, model_state: Any, batch: Any, key: jax.Array
) -> tuple[Any, MetricSums, Any]:
    """Gradients, metric sums and new model state of one (micro-)batch."""
    value_and_grad = jax.value_and_grad(
        lambda p: loss_fn(p, model_state, batch, key, True), has_aux=True
    )
    (loss, (metrics, new_model_state)), grads = value_and_grad(params)
    return grads, weigh({**metrics, "loss": loss}, num_valid(batch)), new_model_state


def _accumulated_gradients(
    loss_fn: LossFn, params: Any, model_state: Any, batch: Any, key: jax.Array, num_parts: int
) -> tuple[Any, MetricSums, Any]:
    """`_gradients` over `num_parts` micro-batches, averaged by their unmasked examples."""
    if num_parts == 1:
        return _gradients(loss_fn, params, model_state, batch, key)
    parts = jax.tree.map(lambda leaf: _split_rows(leaf, num_parts), batch)

    def visit(carry: tuple[Any, Any], part: tuple[jax.Array, Any]) -> tuple[Any, MetricSums]:
        total, model_state = carry
        index, micro_batch = part
        grads, sums, model_state = _gradients(
            loss_fn, params, model_state, micro_batch, jax.random.fold_in(key, index)
        )
        weighted = jax.tree.map(
            lambda t, g: t + jnp.where(sums.weight > 0, g * sums.weight.astype(g.dtype), 0),
            total,
            grads,
        )
        return (weighted, model_state), sums

    start = (jax.tree.map(jnp.zeros_like, params), model_state)
    (total, model_state), sums = jax.lax.scan(visit, start, (jnp.arange(num_parts), parts))
    sums = jax.tree.map(lambda values: jnp.sum(values, axis=0), sums)
    divisor = jnp.where(sums.weight > 0, sums.weight, 1.0)
    return jax.tree.map(lambda g: g / divisor.astype(g.dtype), total), sums, model_state


def _split_rows(leaf: jax.Array, num_parts: int) -> jax.Array:
    """`[n, ...]` to `[num_parts, n / num_parts, ...]`, with the rows dealt out in turn."""
    return jnp.moveaxis(leaf.reshape(-1, num_parts, *leaf.shape[1:]), 1, 0)
