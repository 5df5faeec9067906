"""The training state: everything that is carried from one step to the next, as one pytree."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from mlg_jax.train._partition import TrainableRule, split_params


class TrainState(struct.PyTreeNode):
    """The state of a run; a checkpoint stores it completely.

    `step` is the number of updates made, and so the number of the next update, from 0. Update
    `step` uses the key `fold_in(key, step)`, so a discarded update does not change later random
    numbers. Once `is_loss_broken` or `is_gradient_broken` is true, the state is frozen: further
    steps return it unchanged, and `step` remains the number of the failed update.
    """

    step: jax.Array  # int32 scalar
    params: Any
    model_state: Any  # batch statistics, activation ranges, ...; updated by the loss function
    opt_state: Any  # optimiser state of the trained parameters
    key: jax.Array  # base key of the run; never changes
    num_overflows: jax.Array  # int32 scalar: number of updates made by the exact step
    is_loss_broken: jax.Array  # bool scalar: the loss of update `step` is not finite
    is_gradient_broken: jax.Array  # bool scalar: its loss is finite, but not its gradient
    # Bool arrays by the name of a pruned parameter, False where it is pruned. Stored, because an
    # unpruned weight may be zero by chance.
    masks: Mapping[str, jax.Array] = struct.field(default_factory=dict)


def create_state(
    *,
    params: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    model_state: Any = None,
    is_trainable: TrainableRule | None = None,
    masks: Mapping[str, jax.Array] | None = None,
) -> TrainState:
    """Makes the initial state; its arrays are copies of those given.

    Args:
        params: a pytree of arrays.
        optimizer: as returned by `make_optimizer`.
        key: base key of the run, a typed key (`jax.random.key`).
        model_state: a pytree of arrays; None for a model without state.
        is_trainable: whether the parameter with a given name is trained; None trains all. Frozen
            parameters have no optimiser state.
        masks: masks of the pruned parameters by name; None does not prune.

    Raises:
        ValueError: a parameter is not finite, `key` is not a typed key, or nothing is trained.
    """
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"`key` must be a typed key such as `jax.random.key(0)`; got {key!r}.")
    if not are_finite(params):
        raise ValueError("`params` must be finite; got a NaN or an infinity.")
    params = jax.tree.map(jnp.array, params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=jax.tree.map(jnp.array, {} if model_state is None else model_state),
        opt_state=optimizer.init(split_params(params, is_trainable)[0]),
        key=jax.random.clone(key),
        num_overflows=jnp.zeros((), jnp.int32),
        is_loss_broken=jnp.zeros((), bool),
        is_gradient_broken=jnp.zeros((), bool),
        masks=dict(masks or {}),
    )


def are_finite(tree: Any) -> jax.Array:
    """A bool scalar: whether every entry of every floating-point leaf is finite."""
    checks = [
        jnp.all(jnp.isfinite(leaf))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return jnp.all(jnp.stack(checks)) if checks else jnp.array(True)


def select(condition: jax.Array, chosen: Any, otherwise: Any) -> Any:
    """Leaf by leaf, `chosen` if the scalar `condition` is true, and `otherwise` if not."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, otherwise)
