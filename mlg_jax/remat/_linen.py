"""The transform for Linen modules, as `nn.remat` is `jax.checkpoint` for them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax.core import Scope, lift
from flax.linen import transforms

from mlg_jax.remat._checkpoint import ResidualPolicy, store_residuals


def lift_policy(
    target: Any,
    policy: ResidualPolicy,
    *,
    activations: Sequence[int] = (-1,),
    stream: str = "quantize",
) -> Any:
    """A module class, or a function `(module, *args)`, with `policy` for its residuals.

    Args:
        target: class or function; of a class, `__call__` is meant.
        policy: what is kept; variables and random keys of the module stay as they are.
        activations: positions among the arguments after the module.
        stream: the random stream that stochastic codecs draw from.

    Returns:
        The same kind of thing. Collections and streams of the module are seen and changed as
        without it; Python values among the arguments stay Python values.
    """
    if not policy.name:
        policy = dataclasses.replace(policy, name=getattr(target, "__name__", ""))

    def transform(scope_function: Callable[..., Any]) -> Callable[..., Any]:
        def inner(
            scope_fn: Any, repack_fn: Any, groups: Any, streams: Any, *args: Any, **kwargs: Any
        ) -> Any:
            def pure(groups: Any, streams: Any, *args: Any, **kwargs: Any) -> Any:
                scope = scope_fn(groups, streams)
                return scope_function(scope, *args, **kwargs), repack_fn(scope)

            scopes = jax.tree.leaves(scope_fn(groups, streams), is_leaf=_is_scope)
            key = scopes[0].make_rng(stream) if policy.is_random else None
            positions = [i + 2 if i >= 0 else i for i in activations]
            stored = store_residuals(pure, policy, positions, key)
            return stored(groups, streams, *args, **kwargs)

        return lift.pack(inner, (True,), (True,), (True,), name="checkpoint", enable_kwargs=True)

    return transforms.lift_transform(transform, target)


def _is_scope(value: Any) -> bool:
    return isinstance(value, Scope)
