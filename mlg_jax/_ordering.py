"""Orders computations: by data dependencies on CPU, by optimization barriers elsewhere."""

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
    """Shape and dtype of an array that is not saved: static data among the residuals."""

    shape: tuple[int, ...]
    dtype: Any


def vary_alike(tree: Any) -> Any:
    """Marks every array of `tree` as varying over the mesh axes over which any of them varies.

    Inside `jax.shard_map`, the arguments of a custom VJP need this: a cotangent must vary over the
    same axes as its primal, but the gradient of a replicated parameter varies with the data. If the
    parameter is marked as varying first, the transpose of the mark sums the gradient over the
    devices. Outside `jax.shard_map`, `tree` is returned unchanged.
    """
    every = frozenset().union(*map(varying_axes, jax.tree.leaves(tree)))
    return jax.tree.map(lambda leaf: _vary(leaf, every), tree)


def instantiate(cotangent: Any) -> Any:
    """Replaces a symbolic zero cotangent by an array of zeros; returns others unchanged."""
    if not isinstance(cotangent, SymbolicZero):
        return cotangent
    if cotangent.dtype == jax.dtypes.float0:
        return np.zeros(cotangent.shape, jax.dtypes.float0)
    aval: Any = cotangent.aval
    return _vary(jnp.zeros(cotangent.shape, cotangent.dtype), aval.manual_axis_type.varying)


def varying_axes(x: Any) -> frozenset[str]:
    """The mesh axes of `jax.shard_map` over which `x` may differ between devices."""
    aval: Any = jax.typeof(x)
    return aval.manual_axis_type.varying


def _vary(x: Any, axes: frozenset[str]) -> Any:
    missing = axes - varying_axes(x)
    return lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x


def opaque_false(tree: Any) -> Array:
    """A predicate that is always false, but is computed from `tree`.

    `x < -inf` is false for every x, NaN included, and XLA does not simplify it. Optimization
    barriers do not suffice: XLA:CPU (seen with jax 0.10.2) removes them before it eliminates common
    subexpressions, and then merges a recomputation with the original.

    Args:
        tree: a pytree; the first entry of each floating-point or unsigned array in it is read.

    Returns:
        A boolean scalar.
    """
    never = jnp.array(False)
    for leaf in map(jnp.asarray, jax.tree.leaves(tree)):
        if leaf.size and jnp.issubdtype(leaf.dtype, jnp.floating):
            never |= _read_once(leaf.reshape(-1)[0]) < -jnp.inf
        elif leaf.size and jnp.issubdtype(leaf.dtype, jnp.unsignedinteger):
            never |= (leaf.reshape(-1)[0] | 1) == 0
    return never


def _read_once(x: Array) -> Array:
    """Materialises a scalar on CPU.

    Otherwise XLA fuses the read into every consumer and keeps the array alive until the last. On
    other devices the only consumers are barriers, into which nothing is fused.
    """
    return lax.platform_dependent(x, cpu=_divide_by_one, default=lambda x: x)


def wait_for(tree: Any, other: Any) -> Any:
    """Returns `tree`, bit for bit, but available only once the arrays of `other` are computed.

    On CPU the arrays depend on a predicate. On other devices they pass a barrier together with
    those of `other`: that costs nothing for arrays that are in memory anyway, such as the operands
    and results of convolutions and matrix products, but it writes down arrays that would otherwise
    be fused into their consumers.
    """
    others = [x for x in jax.tree.leaves(other) if _is_number(x)]

    def wait(x: Any) -> Any:
        if not _is_number(x):
            return x
        return lax.platform_dependent(x, others, cpu=_wait_by_reading, default=_wait_by_barrier)

    return jax.tree.map(wait, tree)


def wait_for_on_cpu(tree: Any, other: Any) -> Any:
    """`wait_for` on CPU; on other devices `tree`, whose compilers need no such help here."""

    def wait(x: Any) -> Any:
        if not _is_number(x):
            return x
        return lax.platform_dependent(x, other, cpu=_wait_by_reading, default=lambda x, _: x)

    return jax.tree.map(wait, tree)


def wait_for_predicate(tree: Any, never: Array) -> Any:
    """Returns `tree` unchanged but data-dependent on `never`, a predicate that is always false.

    Inside `jax.shard_map`, an array that is replicated over an axis is not made to depend on a
    predicate that varies over it.
    """

    def wait(x: Any) -> Any:
        if not _is_number(x):
            return x
        return lax.platform_dependent(x, never, cpu=_wait_by_choice, default=_wait_by_barrier)

    return jax.tree.map(wait, tree)


def _is_number(x: Any) -> bool:
    return any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer))


def _wait_by_reading(x: Array, other: Any) -> Array:
    return _wait_by_choice(x, opaque_false(other))


def _wait_by_choice(x: Array, never: Array) -> Array:
    if varying_axes(never) - varying_axes(x):
        return x
    return jnp.where(never, jnp.zeros((), x.dtype), x)


def _wait_by_barrier(x: Array, other: Any) -> Array:
    """Ties `x` to `other` by barriers, without the copy that a select makes unless it is fused.

    There are two barriers because XLA drops an operand of a barrier if its result is unused and
    nothing else reads it: a single barrier would lose `other`. (ResNet-18, batch 128, bfloat16,
    policy `blocks`, compiled for an H100 by jax 0.10.2: 300 MiB of temporaries with one barrier,
    130 MiB with two.)
    """
    alike = [y for y in jax.tree.leaves(other) if not varying_axes(y) - varying_axes(x)]
    for _ in range(2 if alike else 0):
        x = lax.optimization_barrier((x, lax.stop_gradient(alike)))[0]
    return x


def materialize(x: Array) -> Array:
    """Returns `x`, bit for bit, computed once and written to memory.

    XLA fuses cheap operations into every consumer of their result. Instead of an activation that
    was meant to be saved for the backward pass, it then saves the operands, which may be several
    arrays. XLA never duplicates a division, so on CPU we divide by a 1 that it cannot
    constant-fold.
    """

    @jax.custom_jvp
    def once(x: Array) -> Array:
        return lax.platform_dependent(x, cpu=_divide_by_one, default=lax.optimization_barrier)

    once.defjvp(lambda primals, tangents: (once(*primals), *tangents))
    return once(x)


def materialize_off_cpu(x: Array) -> Array:
    """`materialize` on devices other than CPUs, whose compiler fuses sums into later kernels."""
    return lax.platform_dependent(x, cpu=lambda x: x, default=lax.optimization_barrier)


def _divide_by_one(x: Array) -> Array:
    return x / jnp.where(x < -jnp.inf, 2, 1).astype(x.dtype)


@jax.custom_vjp
def materialize_cotangent(x: Array) -> Array:
    """The identity, whose cotangent is computed once and written to memory.

    For values with several consumers, whose cotangent is a sum: otherwise XLA keeps the summands.
    """
    return x


materialize_cotangent.defvjp(lambda x: (x, None), lambda _, cotangent: (materialize(cotangent),))


@jax.custom_vjp
def run_after(x: Array, y: Array) -> Array:
    """Returns `x`, available only once `y` is computed: orders two branches in both passes.

    Forward: `x`, which waits for `y`.
    Backward: the cotangent of `y` is zeros that wait for the cotangent of `x`, so that the backward
    pass of the consumers of `x` finishes before that of the producers of `y` starts.
    Residuals: the shape of `y`.
    On devices other than CPUs, the order is left to the compiler.
    """
    return wait_for_on_cpu(x, y)


def _run_after_fwd(x: Array, y: Array) -> tuple[Array, ShapeOf]:
    return run_after(x, y), ShapeOf(y.shape, y.dtype)


def _run_after_bwd(y: ShapeOf, cotangent: Array) -> tuple[Array, Array]:
    zeros = wait_for_on_cpu(jnp.zeros((), y.dtype), cotangent)
    return cotangent, jnp.broadcast_to(zeros, y.shape)


run_after.defvjp(_run_after_fwd, _run_after_bwd)
