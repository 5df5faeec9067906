"""Optimisers as optax transformations, built from a spec."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from mlg_jax.train._partition import leaf_name
from mlg_jax.train._radam import scale_by_radam
from mlg_jax.train._schedule import Schedule
from mlg_jax.train._spec import OptimizerSpec

DecayRule = Callable[[str, jax.Array], bool]

_COUPLED = ("sgd", "adam")  # these add weight decay to the gradient


def is_decayed_by_rank(name: str, leaf: jax.Array) -> bool:
    """True for arrays with two or more axes: biases and the scales of norms are not decayed."""
    del name
    return jnp.ndim(leaf) > 1


def make_optimizer(
    spec: OptimizerSpec, schedule: Schedule, *, is_decayed: DecayRule = is_decayed_by_rank
) -> optax.GradientTransformationExtraArgs:
    """Builds the optimiser of a spec as an optax transformation.

    `sgd`: `g += wd p; v = momentum v + g; p -= lr (g + momentum v)`. `adam`: `g += wd p`, then
    Adam. `adamw`, `radam`: `p -= lr (update + wd p)`. Clipping applies to the gradient before
    weight decay is added.

    Sharpness-aware minimisation wraps the whole optimiser: the gradient is evaluated again at
    `p + rho g / ||g||`, so `update` needs the extra argument `grad_fn(params, i)`.

    Args:
        spec: the optimiser and its hyperparameters.
        schedule: learning rate as a function of the number of updates.
        is_decayed: called with the name of a parameter ("block/kernel") and its array; whether
            weight decay applies to it. By default it applies to arrays with two or more axes.

    Returns:
        A transformation whose `update` takes `(grads, state, params, grad_fn=...)`.

    Reference: decoupled decay, https://arxiv.org/abs/1711.05101; RAdam,
    https://arxiv.org/abs/1908.03265; SAM, https://arxiv.org/abs/2010.01412.
    """
    decay = _decay(spec.weight_decay, is_decayed)
    is_coupled = spec.name in _COUPLED
    inner = optax.chain(
        *([] if spec.clip_norm is None else [optax.clip_by_global_norm(spec.clip_norm)]),
        *(decay if is_coupled else []),
        _direction(spec),
        *([] if is_coupled else decay),
        optax.scale_by_learning_rate(schedule),
    )
    if spec.sam_rho is None:
        return optax.with_extra_args_support(inner)
    return contrib.sam(inner, _descend_normalized(spec.sam_rho), opaque_mode=True)


def _decay(weight_decay: float, is_decayed: DecayRule) -> list[optax.GradientTransformation]:
    if weight_decay == 0.0:
        return []

    def mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: bool(is_decayed(leaf_name(path), leaf)), params
        )

    return [optax.add_decayed_weights(weight_decay, mask=mask)]


def _direction(spec: OptimizerSpec) -> optax.GradientTransformation:
    if spec.name == "sgd":
        if spec.momentum == 0.0:
            return optax.identity()
        return optax.trace(decay=spec.momentum, nesterov=True)
    if spec.name == "radam":
        return scale_by_radam(spec.b1, spec.b2, spec.eps)
    return optax.scale_by_adam(spec.b1, spec.b2, spec.eps)


def _descend_normalized(rho: float) -> optax.GradientTransformation:
    """Updates with `-rho g / (||g|| + 1e-12)`, the adversarial step of SAM.

    The sign is that of a descent because `optax.contrib.sam` negates it. Unlike with
    `optax.contrib.normalize`, a zero gradient stays zero.
    """

    def update(grads: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, Any]:
        del params
        scale = -rho / (optax.tree.norm(grads) + 1e-12)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
