"""Gradual magnitude pruning: the schedule of sparsity and the masks of pruned weights."""

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mlg_jax.train._partition import TrainableRule, leaf_name, named_leaves
from mlg_jax.train._spec import PruningSpec

# (masks, parameters after the update, number of updates) -> masks.
MaskUpdate = Callable[[Mapping[str, jax.Array], Any, jax.Array], Mapping[str, jax.Array]]

_NEVER_KEPT = -1.0  # below every magnitude, so that a pruned weight stays pruned


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruning:
    """The schedule of pruning; steps are numbers of updates.

    The masks are updated at `t = start_step + i every_steps`, `i = 1 .. num_prunings`, to a
    sparsity of `final_sparsity (1 - (1 - i / num_prunings)^3)`.

    Reference: https://arxiv.org/abs/1710.01878, equation 1 with `s_i = 0`.
    """

    start_step: int
    every_steps: int
    num_prunings: int
    final_sparsity: float
    scope: str  # sparsity of each array (`layer`) or of all arrays together (`global`)

    @property
    def end_step(self) -> int:
        """The update after which the masks no longer change."""
        return self.start_step + self.num_prunings * self.every_steps

    def is_due(self, step: jax.Array) -> jax.Array:
        """Whether the masks are updated after `step` updates; can be traced."""
        is_within = (step > self.start_step) & (step <= self.end_step)
        return is_within & ((step - self.start_step) % self.every_steps == 0)

    def sparsity(self, step: jax.Array | int) -> jax.Array:
        """The fraction of zeros after `step` updates, a float32 scalar; can be traced."""
        index = (jnp.asarray(step) - self.start_step) // self.every_steps
        left = 1.0 - jnp.clip(index, 0, self.num_prunings) / self.num_prunings
        return jnp.float32(self.final_sparsity) * (1.0 - left**3)

    def update(
        self, masks: Mapping[str, jax.Array], params: Any, step: jax.Array
    ) -> dict[str, jax.Array]:
        """The masks after `step` updates: new ones if an update is due, otherwise `masks`.

        Args:
            masks: bool arrays by parameter name, False for pruned weights, which stay pruned.
            params: the parameters after the update.
            step: number of updates, an integer scalar.
        """
        leaves = named_leaves(params)

        def updated() -> dict[str, jax.Array]:
            scores = {n: jnp.where(masks[n], jnp.abs(leaves[n]), _NEVER_KEPT) for n in masks}
            sparsity = self.sparsity(step)
            if self.scope == "layer":
                return {name: _without_smallest(s, sparsity) for name, s in scores.items()}
            flat = jnp.concatenate([s.reshape(-1) for s in scores.values()])
            return _unflatten(_without_smallest(flat, sparsity), masks)

        return jax.lax.cond(self.is_due(step), updated, lambda: dict(masks))


def make_pruning(spec: PruningSpec, num_steps: int) -> Pruning:
    """The pruning schedule of a run of `num_steps` updates.

    Raises:
        ValueError: `every_steps` exceeds the number of steps between start and end.
    """
    start, end = (round(f * num_steps) for f in (spec.start_fraction, spec.end_fraction))
    if end - start < spec.every_steps:
        raise ValueError(
            f"`every_steps` must be at most the {end - start} steps from `start_fraction` to "
            f"`end_fraction` of the run's {num_steps}; got {spec.every_steps}."
        )
    return Pruning(
        start_step=start,
        every_steps=spec.every_steps,
        num_prunings=(end - start) // spec.every_steps,
        final_sparsity=spec.final_sparsity,
        scope=spec.scope,
    )


def initial_masks(
    params: Any, spec: PruningSpec | None, is_trainable: TrainableRule | None
) -> dict[str, jax.Array]:
    """Masks of ones for all parameters to prune, by name; empty without a spec.

    Pruned parameters are the trained arrays named "kernel" that match no pattern of `exclude`.
    Biases, norms and the factors of generated kernels are never pruned.

    Raises:
        ValueError: there is a spec, but no parameter to prune.
    """
    if spec is None:
        return {}

    def is_pruned(name: str) -> bool:
        is_trained = is_trainable is None or is_trainable(name)
        is_excluded = any(fnmatch.fnmatchcase(name, pattern) for pattern in spec.exclude)
        return is_trained and name.split("/")[-1] == "kernel" and not is_excluded

    leaves = named_leaves(params)
    masks = {name: jnp.ones(leaf.shape, bool) for name, leaf in leaves.items() if is_pruned(name)}
    if not masks:
        raise ValueError(
            f"`pruning` must leave a kernel to prune; got none among {sorted(leaves)[:5]}..."
        )
    return masks


def apply_masks(tree: Any, masks: Mapping[str, jax.Array]) -> Any:
    """Zeroes the entries of `tree` (parameters or gradients) where a mask is False."""
    if not masks:
        return tree

    def masked(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        mask = masks.get(leaf_name(path))
        return leaf if mask is None else jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))

    return jax.tree_util.tree_map_with_path(masked, tree)


@jax.jit
def zero_fraction(params: Any, masks: Mapping[str, jax.Array]) -> jax.Array:
    """The fraction of exact zeros in the pruned arrays, a float32 scalar."""
    leaves = named_leaves(params)
    num_zeros = sum(jnp.sum(leaves[name] == 0).astype(jnp.float32) for name in masks)
    return jnp.float32(num_zeros / sum(mask.size for mask in masks.values()))


def _without_smallest(scores: jax.Array, share: jax.Array) -> jax.Array:
    """False for the `round(share n)` smallest of `n` entries, earlier ones first if several tie.

    Ranks give exactly that number of zeros even if magnitudes tie; a threshold would not.
    """
    order = jnp.argsort(scores.reshape(-1), stable=True)
    rank = jnp.zeros(scores.size, jnp.int32).at[order].set(jnp.arange(scores.size, dtype=jnp.int32))
    return (rank >= jnp.round(share * scores.size)).reshape(scores.shape)


def _unflatten(flat: jax.Array, like: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    parts, start = {}, 0
    for name, leaf in like.items():
        parts[name] = flat[start : start + math.prod(leaf.shape)].reshape(leaf.shape)
        start += leaf.size
    return parts
