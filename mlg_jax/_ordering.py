"""Ordering of computations: barriers where the compiler keeps them, data dependencies elsewhere."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ShapeOf:
    """Shape and dtype of an array that is not kept; a static part of residuals."""

    shape: tuple[int, ...]
    dtype: Any


def vary_alike(tree: Any) -> Any:
    """`tree` for a custom VJP inside `jax.shard_map`: every array varies over the axes of all.

    There a cotangent must vary over the axes that its primal varies over, and the gradient of a
    replicated parameter varies with the data. Marking the parameter as varying first leaves the sum
    over the devices to the transpose of the mark. Outside `jax.shard_map` nothing happens.
    """
    every = frozenset().union(*map(varying_axes, jax.tree.leaves(tree)))
    return jax.tree.map(lambda leaf: _vary(leaf, every), tree)


def instantiate(cotangent: Any) -> Any:
    """A cotangent, or the zeros that a symbolic one stands for."""
    if not isinstance(cotangent, SymbolicZero):
        return cotangent
    if cotangent.dtype == jax.dtypes.float0:
        return np.zeros(cotangent.shape, jax.dtypes.float0)
    aval: Any = cotangent.aval
    return _vary(jnp.zeros(cotangent.shape, cotangent.dtype), aval.manual_axis_type.varying)


def varying_axes(x: Any) -> frozenset[str]:
    """The axes of `jax.shard_map` over which the devices hold different numbers."""
    aval: Any = jax.typeof(x)
    return aval.manual_axis_type.varying


def _vary(x: Any, axes: frozenset[str]) -> Any:
    missing = axes - varying_axes(x)
    return lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x


def opaque_false(tree: Any) -> Array:
    """A bool that is always false, known to the compiler only once `tree` has been computed.

    "x < -inf" is false for every x, NaN included, and XLA does not simplify it. Optimization
    barriers would say the same, but XLA:CPU expands them before common-subexpression elimination,
    which then merges a recomputation with the original (measured with jax 0.10.2).

    Args:
        tree: a pytree; the first entry of each floating or unsigned array in it is read.
    """
    never = jnp.array(False)
    for leaf in map(jnp.asarray, jax.tree.leaves(tree)):
        if leaf.size and jnp.issubdtype(leaf.dtype, jnp.floating):
            # Materialise the scalar: otherwise XLA fuses the read into every consumer and keeps the
            # array alive until the last.
            never |= materialize(leaf.reshape(-1)[0]) < -jnp.inf
        elif leaf.size and jnp.issubdtype(leaf.dtype, jnp.unsignedinteger):
            never |= (leaf.reshape(-1)[0] | 1) == 0
    return never


def wait_for(tree: Any, other: Any) -> Any:
    """Returns `tree`, bit for bit, available only after the arrays of `other`."""
    return wait_for_predicate(tree, opaque_false(other))


def wait_for_predicate(tree: Any, never: Array) -> Any:
    """Returns `tree` unchanged but data-dependent on `never`, a predicate that is always false.

    In `jax.shard_map`, what is the same on all devices does not wait for what is not.
    """

    def wait(x: Any) -> Any:
        if not any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer)):
            return x
        if varying_axes(never) - varying_axes(x):
            return x
        return lax.platform_dependent(x, never, cpu=_wait_by_choice, default=_wait_by_barrier)

    return jax.tree.map(wait, tree)


def _wait_by_choice(x: Array, never: Array) -> Array:
    return jnp.where(never, jnp.zeros((), x.dtype), x)


def _wait_by_barrier(x: Array, never: Array) -> Array:
    """Spares the copy that `_wait_by_choice` makes where the next operation takes no fused input.

    The same barrier twice: XLA takes out of a barrier what nobody reads, unless something else
    reads it too, and nothing would wait for a `never` that only one of them holds. (ResNet-18,
    batch 128, bfloat16, policy `blocks`, compiled for an H100 by jax 0.10.2: 300 MiB of
    temporaries with one barrier, 130 with two.)
    """
    for _ in range(2):
        x = lax.optimization_barrier((x, never))[0]
    return x


def materialize(x: Array) -> Array:
    """`x`, bit for bit, as an array that the compiler writes to memory and computes once.

    XLA fuses cheap operations into every consumer of their result. An activation that is kept for
    the backward pass is then not kept: its operands are, and these may be several arrays. XLA never
    duplicates a division, so on CPU we divide by a 1 that it cannot constant-fold.
    """

    @jax.custom_jvp
    def once(x: Array) -> Array:
        return lax.platform_dependent(x, cpu=_divide_by_one, default=lax.optimization_barrier)

    once.defjvp(lambda primals, tangents: (once(*primals), *tangents))
    return once(x)


def _divide_by_one(x: Array) -> Array:
    return x / jnp.where(x < -jnp.inf, 2, 1).astype(x.dtype)


@jax.custom_vjp
def materialize_cotangent(x: Array) -> Array:
    """`x`, whose cotangent is written to memory once before it is used.

    For values with several consumers: otherwise the operands of their cotangents are kept.
    """
    return x


materialize_cotangent.defvjp(lambda x: (x, None), lambda _, cotangent: (materialize(cotangent),))


@jax.custom_vjp
def run_after(x: Array, y: Array) -> Array:
    """`x`, to be used only once `y` has been computed: orders two branches, in both passes.

    Forward: `x`, which waits for `y`. Backward: `y` gets zeros that wait for the cotangent of x, so
    that the consumers of x finish before the producers of y start. Residuals: the shape of y.
    """
    return wait_for(x, y)


def _run_after_fwd(x: Array, y: Array) -> tuple[Array, ShapeOf]:
    return run_after(x, y), ShapeOf(y.shape, y.dtype)


def _run_after_bwd(y: ShapeOf, cotangent: Array) -> tuple[Array, Array]:
    zero = jnp.where(opaque_false(cotangent), 1, 0).astype(y.dtype)
    return cotangent, jnp.broadcast_to(zero, y.shape)


run_after.defvjp(_run_after_fwd, _run_after_bwd)
