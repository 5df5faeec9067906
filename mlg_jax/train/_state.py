"""Everything a run carries from one step to the next, as one pytree."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from mlg_jax.train._partition import TrainableRule, split_params


class TrainState(struct.PyTreeNode):
    """The state of a run; a checkpoint holds all of it.

    `step` counts the updates made, and numbers the next one from 0. The key of update `step` is
    `fold_in(key, step)`, so a discarded update leaves no trace in the random numbers. Once either
    `is_loss_broken` or `is_gradient_broken` holds, the state is frozen: steps leave it as it is,
    and `step` stays the number of the failing update.
    """

    step: jax.Array  # int32 scalar
    params: Any
    model_state: Any  # batch statistics, activation ranges, ...; changed by the loss function
    opt_state: Any  # of the parameters that are trained
    key: jax.Array  # the base key, never consumed
    num_overflows: jax.Array  # int32 scalar: updates made by the exact step
    is_loss_broken: jax.Array  # bool scalar: the loss of update `step` is not finite
    is_gradient_broken: jax.Array  # bool scalar: nor a gradient, though the loss is
    # Bool arrays by the name of a pruned parameter, False where it is zero. Stored, not derived
    # from the zeros: a weight may be zero by chance.
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
    """The state before the first update; the arrays given are copied, never donated.

    Args:
        params: a pytree of arrays.
        optimizer: as from `make_optimizer`.
        key: the base key of the run, a typed key (`jax.random.key`).
        model_state: a pytree of arrays; None for a model that has none.
        is_trainable: the parameters that are trained, by name; None: all of them. The others have
            no optimiser state.
        masks: of the parameters that are pruned, by name; None prunes nothing.

    Raises:
        ValueError: a parameter that is not finite, a key that is no typed key, nothing to train.
    """
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"`key` must be a typed key, as of `jax.random.key(0)`; got {key!r}.")
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
    """A boolean scalar: is every entry of every floating-point leaf finite?"""
    checks = [
        jnp.all(jnp.isfinite(leaf))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return jnp.all(jnp.stack(checks)) if checks else jnp.array(True)


def select(condition: jax.Array, chosen: Any, otherwise: Any) -> Any:
    """`chosen` where the scalar `condition` holds, else `otherwise`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, otherwise)
