"""The public transforms: checkpointing of functions and Linen modules by a preset's name."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from mlg_jax._checks import check_choice, check_instance, check_integer, check_real
from mlg_jax._types import Key
from mlg_jax.remat._checkpoint import ResidualPolicy, store_residuals
from mlg_jax.remat._codec import PACKED
from mlg_jax.remat._linen import lift_policy
from mlg_jax.remat._policy import PRESETS, RematSpec

# A policy for `jax.checkpoint` and `nn.remat` that saves only what our codecs packed.
save_bitmaps = jax.checkpoint_policies.save_only_these_names(PACKED)


def checkpoint(
    fn: Callable[..., Any],
    *,
    policy: str | ResidualPolicy | RematSpec,
    capacity: float = 0.75,
    activations: int | tuple[int, ...] = -1,
    key: Key | None = None,
) -> Callable[..., Any]:
    """Returns `fn` with few residuals: everything else is recomputed in the backward pass.

    Like `jax.checkpoint`, but also effective on CPU, where XLA undoes `jax.checkpoint` outside
    loops. Works under jit, grad, vmap, scan and `jax.shard_map`, on sharded arrays, and with
    pytrees, keyword and default arguments, closed-over arrays, and Python values among the
    arguments (which stay Python values). Reverse mode only; higher-order gradients only if nothing
    is packed.

    Args:
        fn: a function without side effects.
        policy: a key of `mlg_jax.remat.PRESETS`, a `mlg_jax.remat.ResidualPolicy` or a
            `mlg_jax.remat.RematSpec`, as `create_model` takes them. Applied to a
            single function, `none` returns it unchanged; `blocks` saves its arguments;
            `bitmap_blocks` and `bitmap_units` do so with its activations as bitmaps;
            `quantized_blocks` with its activations as 8-bit integers, stochastically rounded;
            `convs` is `blocks`, and `bitmap` is `bitmap_blocks`, with the outputs of this
            library's convolutions saved as well, so that no convolution runs twice.
        capacity: share of an activation's entries that may be non-zero, in (0, 1]. If there are
            more, the bitmap overflows and every cotangent of the call is NaN.
        activations: position(s) of the positional argument(s) whose floating-point arrays may be
            packed, usually ReLU outputs. All other arguments are saved as they are.
        key: random key, required by policies that round stochastically.

    Returns:
        A function with the arguments and values of `fn`, and with its gradients unless the policy
        rounds.

    Raises:
        TypeError: `policy` or `activations` is of another type; in the call, an activation that
            would be packed is not a floating-point array.
        ValueError: `policy` is unknown, `capacity` is out of range or `key` is missing; in the
            call, `activations` is out of range or `fn` has side effects.

    Examples:
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
    """`checkpoint` for Linen modules, as `nn.remat` is `jax.checkpoint` for them.

    Args:
        target: a module class, whose `__call__` is wrapped, or a function `(module, *args)`.
        policy: as in `checkpoint`.
        capacity: as in `checkpoint`.
        activations: as in `checkpoint`, not counting the module.
        stream: the random stream from which policies that round draw their keys.

    Returns:
        A class or function with the arguments, variables and values of `target`.

    Raises:
        TypeError, ValueError: as in `checkpoint`.
    """
    kept = _residual_policy(policy, capacity)
    positions = _positions(activations)
    if kept is None:
        return target
    return lift_policy(target, kept, activations=positions, stream=stream)


def _residual_policy(
    policy: str | ResidualPolicy | RematSpec, capacity: float
) -> ResidualPolicy | None:
    check_instance("policy", policy, (str, ResidualPolicy, RematSpec))
    check_real("capacity", capacity, 0.0, 1.0, exclusive_minimum=True)
    if isinstance(policy, ResidualPolicy):
        return policy
    if isinstance(policy, RematSpec):
        make = policy.block_policy or PRESETS[policy.preset].unit
        kept = None if make is None else make(policy.capacity, policy.mesh)
        return kept and dataclasses.replace(kept, on_overflow=policy.on_overflow)
    check_choice("policy", policy, PRESETS)
    preset = PRESETS[policy]
    make = preset.block or preset.unit
    return None if make is None else make(capacity, None)


def _positions(activations: int | tuple[int, ...]) -> tuple[int, ...]:
    positions = activations if isinstance(activations, tuple) else (activations,)
    for position in positions:
        check_integer("activations", position, -(2**31))
    return positions
