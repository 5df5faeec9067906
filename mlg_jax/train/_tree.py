"""Names of the leaves of a pytree, and questions asked of all of them."""

from typing import Any

import jax
import jax.numpy as jnp


def leaf_name(path: tuple[Any, ...]) -> str:
    """The key path of a leaf, joined by slashes: "params/block/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by name, in its order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {leaf_name(path): leaf for path, leaf in leaves}


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
