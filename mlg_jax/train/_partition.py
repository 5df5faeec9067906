"""Parameters in two parts: those that are trained, and those that only take part."""

from collections.abc import Callable
from typing import Any

import jax

TrainableRule = Callable[[str], bool]  # from a parameter's name, "block/kernel"


def leaf_name(path: tuple[Any, ...]) -> str:
    """The key path of a leaf, joined by slashes: "params/block/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by name, in its order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {leaf_name(path): leaf for path, leaf in leaves}


def split_params(params: Any, is_trainable: TrainableRule | None) -> tuple[Any, Any]:
    """Two trees of the structure of `params`, each holding None where the other has the array.

    None is a pytree without leaves: what is differentiated with respect to the first part, and an
    optimiser made for it, know nothing of the second.

    Args:
        params: a pytree of arrays.
        is_trainable: whether the parameter of a name is trained; None: all are.

    Returns:
        The trained part and the frozen part.

    Raises:
        ValueError: nothing is trained.
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
    """The tree that `split_params` has split."""
    return jax.tree.map(
        lambda left, right: right if left is None else left,
        trained,
        frozen,
        is_leaf=lambda leaf: leaf is None,
    )
