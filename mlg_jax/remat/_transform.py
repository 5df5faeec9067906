"""Checkpointing by the name of a preset, for functions and for Linen modules."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from mlg_jax._checks import check_choice, check_instance, check_integer, check_real
from mlg_jax._types import Key
from mlg_jax.remat._checkpoint import ResidualPolicy, store_residuals
from mlg_jax.remat._codec import PACKED
from mlg_jax.remat._linen import lift_policy
from mlg_jax.remat._policy import PRESETS

# For `jax.checkpoint(f, policy=...)` and `nn.remat`: keeps what our codecs packed inside f, only.
save_bitmaps = jax.checkpoint_policies.save_only_these_names(PACKED)


def checkpoint(
    fn: Callable[..., Any],
    *,
    policy: str | ResidualPolicy,
    capacity: float = 0.75,
    activations: int | tuple[int, ...] = -1,
    key: Key | None = None,
) -> Callable[..., Any]:
    """`fn` that keeps little for its backward pass and computes the rest again.

    Like `jax.checkpoint`, and effective on CPUs too, where the compiler undoes `jax.checkpoint`
    outside of loops. Works under jit, grad, vmap, scan and on sharded arrays, for functions of
    pytrees with default and keyword arguments, closed-over arrays and Python values among the
    arguments (these stay Python values). Reverse mode only; higher orders where nothing is packed.

    Args:
        fn: a function without side effects.
        policy: a name of `mlg_jax.remat.PRESETS` (none, convs, bitmap, blocks, bitmap_blocks,
            bitmap_units, quantized_blocks), or a `mlg_jax.remat.ResidualPolicy`. Applied to one
            function, `blocks` keeps its arguments; `bitmap_blocks` and `bitmap_units` keep its
            activations as bitmaps; `quantized_blocks` as 8 bit integers, rounded at random;
            `convs` and `bitmap` also keep the outputs of our convolutions, so that none runs
            twice. The units of `bitmap_units` are the nested calls of `checkpoint`.
        capacity: share of the activations' entries that a bitmap can hold, in (0, 1]. With more
            non-zeros than that every cotangent is NaN.
        activations: position(s) of the positional argument(s) that may be packed, as a rule ReLU
            outputs; all floating arrays in them are. All other arguments are kept as they are.
        key: for policies that round at random, which need one.

    Returns:
        A function of the same arguments with the same values, and the same gradients unless the
        policy rounds.

    Raises:
        TypeError, ValueError: unknown policy, capacity out of range, missing key; when called: no
            such argument, integer activations, a function with side effects.

    Example:
        >>> layer = lambda w, x: jax.nn.relu(x @ w)
        >>> layer = checkpoint(layer, policy="bitmap_blocks", capacity=0.6)
        >>> x = jax.nn.relu(jnp.linspace(-1.0, 1.0, 12).reshape(3, 4))
        >>> jax.grad(lambda w: jnp.sum(layer(w, x)))(jnp.ones((4, 2))).shape
        (4, 2)

    Reference: https://arxiv.org/abs/2110.15362, https://arxiv.org/abs/1604.06174.
    """
    kept = _residual_policy(policy, capacity)
    positions = _positions(activations)
    if kept is None:
        return fn
    if kept.is_random and key is None:
        raise ValueError(f"`key` must be a random key for policy {policy!r}; got None.")
    return store_residuals(fn, kept, positions, key)


def checkpoint_module(
    target: type[nn.Module] | Callable[..., Any],
    *,
    policy: str | ResidualPolicy,
    capacity: float = 0.75,
    activations: int | tuple[int, ...] = -1,
    stream: str = "quantize",
) -> Any:
    """`checkpoint` for Linen, as `nn.remat` is `jax.checkpoint` for it.

    Args:
        target: a module class, whose `__call__` is meant, or a function `(module, *args)`.
        policy: as for `checkpoint`.
        capacity: as for `checkpoint`.
        activations: positions among the arguments after the module.
        stream: the random stream that policies which round draw from.

    Returns:
        A class or function of the same arguments, variables and values.

    Raises:
        TypeError, ValueError: as from `checkpoint`.
    """
    kept = _residual_policy(policy, capacity)
    positions = _positions(activations)
    if kept is None:
        return target
    return lift_policy(target, kept, activations=positions, stream=stream)


def _residual_policy(policy: str | ResidualPolicy, capacity: float) -> ResidualPolicy | None:
    check_instance("policy", policy, (str, ResidualPolicy))
    check_real("capacity", capacity, 0.0, 1.0, exclusive_minimum=True)
    if isinstance(policy, ResidualPolicy):
        return policy
    check_choice("policy", policy, PRESETS)
    preset = PRESETS[policy]
    make = preset.block or preset.unit
    return None if make is None else make(capacity, None)


def _positions(activations: int | tuple[int, ...]) -> tuple[int, ...]:
    positions = activations if isinstance(activations, tuple) else (activations,)
    for position in positions:
        check_integer("activations", position, -(2**31))
    return positions
