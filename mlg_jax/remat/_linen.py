"""Checkpointing for Linen modules, as `nn.remat` lifts `jax.checkpoint`."""

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
    """Applies `policy` to the residuals of a module class or of a function `(module, *args)`.

    Args:
        target: the class, whose `__call__` is wrapped, or the function.
        policy: how activations are saved; variables and random keys of the module are saved as
            they are.
        activations: positions of the arguments that may be packed, not counting the module.
        stream: the random stream from which stochastic codecs draw their keys.

    Returns:
        A class or function that is used like `target`, reads and updates the same collections and
        random streams, and passes on Python values among its arguments unchanged.
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
