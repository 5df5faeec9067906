"""Names of pytree leaves, and the split of parameters into trained and frozen ones."""

from collections.abc import Callable
from typing import Any

import jax

TrainableRule = Callable[[str], bool]  # whether a parameter, by name ("block/kernel"), is trained


def leaf_name(path: tuple[Any, ...]) -> str:
    """The key path of a leaf, joined with slashes: "params/block/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by name, in the order of the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {leaf_name(path): leaf for path, leaf in leaves}


def split_params(params: Any, is_trainable: TrainableRule | None) -> tuple[Any, Any]:
    """Splits parameters into two trees, each with None in place of the arrays of the other.

    None is a pytree without leaves, so differentiating with respect to the first tree, or building
    an optimiser for it, ignores frozen parameters.

    Args:
        params: a pytree of arrays.
        is_trainable: whether the parameter with a given name is trained; None trains all.

    Returns:
        The trained part and the frozen part.

    Raises:
        ValueError: no parameter is trained.
    """

    def part(is_wanted: bool) -> Any:
        def chosen(path: tuple[Any, ...], leaf: Any) -> Any:
            is_trained = is_trainable is None or bool(is_trainable(leaf_name(path)))
            return leaf if is_trained == is_wanted else None

        return jax.tree_util.tree_map_with_path(chosen, params)

    trained = part(True)
    if is_trainable is not None and not jax.tree.leaves(trained):
        raise ValueError("`is_trainable` must choose at least one parameter; got none.")
    return trained, part(False)


def merge_params(trained: Any, frozen: Any) -> Any:
    """The inverse of `split_params`."""
    return jax.tree.map(
        lambda left, right: right if left is None else left,
        trained,
        frozen,
        is_leaf=lambda leaf: leaf is None,
    )
