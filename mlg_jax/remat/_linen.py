"""The transform for Linen modules, as `nn.remat` is `jax.checkpoint` for them."""

from collections.abc import Callable
from typing import Any

import jax
from flax.core import Scope, lift
from flax.linen import transforms

from mlg_jax.remat._checkpoint import Storage, store_residuals


def lift_storage(fn: Callable[..., Any], storage: Storage, rng: str | None = None) -> Any:
    """`fn(module, x)` whose residuals are `module`'s variables and `x`, stored as told.

    Args:
        fn: a function of a module and one activation; Python values are closed over.
        storage: what is kept.
        rng: the stream that random codecs draw from; None if there are none.

    Returns:
        A function of the same arguments. Variables, collections and streams of the module are seen
        and changed as without it.
    """

    def transform(scope_function: Callable[..., Any]) -> Callable[..., Any]:
        def inner(scope_fn: Any, repack_fn: Any, groups: Any, streams: Any, x: Any) -> Any:
            def pure(groups: Any, streams: Any, x: Any) -> Any:
                scope = scope_fn(groups, streams)
                return scope_function(scope, x), repack_fn(scope)

            scopes = jax.tree.leaves(scope_fn(groups, streams), is_leaf=_is_scope)
            key = scopes[0].make_rng(rng) if storage.is_random else None
            return store_residuals(pure, storage, (-1,), key)(groups, streams, x)

        return lift.pack(inner, (True,), (True,), (True,), name="checkpoint")

    return transforms.lift_transform(transform, fn)


def _is_scope(value: Any) -> bool:
    return isinstance(value, Scope)
