"""Optimisers as optax transformations, built from a spec."""

import fnmatch
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from mlg_jax.train._lookahead import lookahead
from mlg_jax.train._partition import TrainableRule, leaf_name, named_leaves
from mlg_jax.train._radam import scale_by_radam
from mlg_jax.train._schedule import Schedule
from mlg_jax.train._spec import OptimizerSpec, ParamGroup

DecayRule = Callable[[str, jax.Array], bool]

_COUPLED = ("sgd", "adam")  # these add weight decay to the gradient
_MUON_RMS = 0.2  # root mean square of an update, https://arxiv.org/abs/2502.16982


def is_decayed_by_rank(name: str, leaf: jax.Array) -> bool:
    """True for arrays with two or more axes: biases and the scales of norms are not decayed."""
    del name
    return jnp.ndim(leaf) > 1


def make_optimizer(
    spec: OptimizerSpec,
    schedule: Schedule,
    *,
    is_decayed: DecayRule = is_decayed_by_rank,
    num_steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Builds the optimiser of a spec as an optax transformation.

    `sgd`: `g += wd p; v = momentum v + g; p -= lr (g + momentum v)`. `adam`: `g += wd p`, then
    Adam. `adamw`, `radam`, `muon`: `p -= lr (update + wd p)`. Clipping applies to the gradient
    before weight decay is added.

    `muon` makes the update of an array orthogonal, as a matrix of its longest axis (the last one of
    equals) by all others, and scales it to a root mean square of about .2, which is what Adam's
    updates have: the same learning rates suit both. Arrays with fewer than two axes are updated by
    Adam with Nesterov momentum.

    Sharpness-aware minimisation wraps the whole optimiser: the gradient is evaluated again at
    `p + rho g / ||g||`, so `update` needs the extra argument `grad_fn(params, i)`.

    Args:
        spec: the optimiser and its hyperparameters.
        schedule: learning rate as a function of the number of updates.
        is_decayed: called with the name of a parameter ("block/kernel") and its array; whether
            weight decay applies to it. By default it applies to arrays with two or more axes.
        num_steps: updates of the whole run; needed by `lookahead` and by groups that end early.

    Returns:
        A transformation whose `update` takes `(grads, state, params, grad_fn=...)`.

    Raises:
        ValueError: `num_steps` is None, but needed.

    Reference: decoupled decay, https://arxiv.org/abs/1711.05101; RAdam,
    https://arxiv.org/abs/1908.03265; SAM, https://arxiv.org/abs/2010.01412; Muon and its scale,
    https://arxiv.org/abs/2502.16982.
    """
    is_timed = spec.lookahead is not None or any(g.end_fraction < 1.0 for g in spec.groups)
    if is_timed and num_steps is None:
        raise ValueError(
            "`num_steps` must be given for `lookahead` and for groups with an `end_fraction`; "
            "got None."
        )
    decay = _decay(spec, is_decayed)
    is_coupled = spec.name in _COUPLED
    inner = optax.chain(
        *([] if spec.clip_norm is None else [optax.clip_by_global_norm(spec.clip_norm)]),
        *(decay if is_coupled else []),
        _direction(spec),
        *([] if is_coupled else decay),
        optax.scale_by_learning_rate(schedule),
        *_group_rates(spec.groups, num_steps),
    )
    if spec.lookahead is not None and num_steps is not None:
        inner = lookahead(inner, spec.lookahead, num_steps)
    if spec.sam_rho is None:
        return optax.with_extra_args_support(inner)
    return contrib.sam(inner, _descend_normalized(spec.sam_rho), opaque_mode=True)


def without_frozen(is_trainable: TrainableRule | None, spec: OptimizerSpec) -> TrainableRule | None:
    """The rule that also leaves out the parameters of groups with a learning rate of 0."""
    groups = spec.groups
    if all(group.learning_rate > 0.0 for group in groups):
        return is_trainable

    def rule(name: str) -> bool:
        index = _group_of(name, groups)
        is_frozen = index is not None and groups[index].learning_rate == 0.0
        return not is_frozen and (is_trainable is None or is_trainable(name))

    return rule


def check_groups(spec: OptimizerSpec, params: Any) -> None:
    """Raises ValueError unless the pattern of every group matches a parameter."""
    names = list(named_leaves(params))
    for group in spec.groups:
        if not fnmatch.filter(names, group.pattern):
            raise ValueError(
                f"`groups` must have patterns that match a parameter of {names}; "
                f"got {group.pattern!r}."
            )


def _group_of(name: str, groups: tuple[ParamGroup, ...]) -> int | None:
    """The number of the first group whose pattern matches the name of a parameter."""
    matches = (i for i, g in enumerate(groups) if fnmatch.fnmatchcase(name, g.pattern))
    return next(matches, None)


def _decay(spec: OptimizerSpec, is_decayed: DecayRule) -> list[optax.GradientTransformation]:
    """Weight decay by the general rule, then that of every group with a factor of its own."""
    if spec.weight_decay == 0.0:
        return []
    own = {i: g.weight_decay for i, g in enumerate(spec.groups) if g.weight_decay is not None}

    def is_general(name: str, leaf: jax.Array) -> bool:
        return _group_of(name, spec.groups) not in own and bool(is_decayed(name, leaf))

    rules: list[tuple[float, DecayRule]] = [(1.0, is_general)]
    rules += [(factor, _is_in(index, spec.groups)) for index, factor in own.items() if factor]
    return [
        optax.add_decayed_weights(factor * spec.weight_decay, mask=_mask(rule))
        for factor, rule in rules
    ]


def _group_rates(
    groups: tuple[ParamGroup, ...], num_steps: int | None
) -> list[optax.GradientTransformation]:
    """Multiplies the updates of every group by its factor, and by zero once it has ended."""

    def factor(group: ParamGroup) -> Callable[[jax.Array], jax.Array]:
        end = None if num_steps is None else round(group.end_fraction * num_steps)
        return lambda count: jnp.where(
            True if end is None else count < end, jnp.float32(group.learning_rate), 0.0
        )

    return [
        optax.masked(optax.scale_by_schedule(factor(group)), _mask(_is_in(index, groups)))
        for index, group in enumerate(groups)
        if group.learning_rate != 1.0 or group.end_fraction < 1.0
    ]


def _is_in(index: int, groups: tuple[ParamGroup, ...]) -> DecayRule:
    return lambda name, leaf: _group_of(name, groups) == index


def _mask(rule: DecayRule) -> Callable[[Any], Any]:
    """A function from a tree to booleans, as optax's masks are."""
    return lambda tree: jax.tree_util.tree_map_with_path(
        lambda path, leaf: bool(rule(leaf_name(path), leaf)), tree
    )


def _direction(spec: OptimizerSpec) -> optax.GradientTransformation:
    if spec.name == "sgd":
        if spec.momentum == 0.0:
            return optax.identity()
        return optax.trace(decay=spec.momentum, nesterov=True)
    if spec.name == "radam":
        return scale_by_radam(spec.b1, spec.b2, spec.eps)
    if spec.name == "muon":
        return _muon(spec)
    return optax.scale_by_adam(spec.b1, spec.b2, spec.eps)


def _muon(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Muon for arrays with two or more axes, Nadam for the others, without a learning rate."""
    muon = contrib.muon(
        1.0,
        beta=spec.momentum,
        adam_b1=spec.b1,
        adam_b2=spec.b2,
        eps=spec.eps,
        consistent_rms=_MUON_RMS,
        muon_weight_dimension_numbers=lambda tree: jax.tree.map(_as_matrix, tree),
    )
    return optax.chain(muon, optax.scale(-1.0))  # `muon` already descends


def _as_matrix(leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
    """The longest axis, the last one of equals, by all others; None with fewer than two axes."""
    if leaf.ndim < 2:
        return None
    longest = max(range(leaf.ndim), key=lambda axis: (leaf.shape[axis], axis))
    others = tuple(axis for axis in range(leaf.ndim) if axis != longest)
    return contrib.MuonDimensionNumbers(reduction_axis=others, output_axis=(longest,))


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
