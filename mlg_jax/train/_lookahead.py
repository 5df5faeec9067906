"""Lookahead with an averaging that grows stronger over the run, as an optax wrapper."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mlg_jax.train._spec import LookaheadSpec


class LookaheadState(NamedTuple):
    """The number of updates, the slow parameters, and the state of the wrapped optimiser."""

    num_updates: jax.Array  # int32 scalar
    slow: Any  # with the structure of the parameters
    inner: Any


def lookahead(
    inner: optax.GradientTransformation, spec: LookaheadSpec, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimiser by lookahead; `LookaheadSpec` gives the formula.

    Unlike `optax.lookahead`, which averages with a constant weight and has its users carry two sets
    of parameters, this one keeps the slow ones in its state.

    Args:
        inner: the optimiser, with its learning rate.
        spec: period and weight.
        num_steps: updates of the whole run.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> LookaheadState:
        slow = jax.tree.map(jnp.array, params)
        return LookaheadState(jnp.zeros((), jnp.int32), slow, inner.init(params))

    def update(
        grads: Any, state: LookaheadState, params: Any, **extra: Any
    ) -> tuple[Any, LookaheadState]:
        updates, inner_state = inner.update(grads, state.inner, params, **extra)
        count = state.num_updates + 1
        is_due = (count % spec.period == 0) | (count == num_steps)
        decay = spec.final_decay * (count / num_steps) ** 3
        fast = optax.apply_updates(params, updates)

        def averaged(slow: jax.Array, fast: jax.Array) -> jax.Array:
            return slow + (1.0 - decay).astype(slow.dtype) * (fast - slow)

        slow = jax.tree.map(lambda s, f: jnp.where(is_due, averaged(s, f), s), state.slow, fast)
        returned = jax.tree.map(lambda u, s, p: jnp.where(is_due, s - p, u), updates, slow, params)
        return returned, LookaheadState(count, slow, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
