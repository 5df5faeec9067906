"""Ordering: barriers where the compiler keeps them, elsewhere dependencies it cannot remove."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero


def false_that_depends_on(tree: Any) -> Array:
    """A false bool that the compiler can only know once the floating arrays of `tree` are computed.

    "x < -inf" is false for every x, NaN included, and XLA does not simplify it.
    Optimization barriers would say the same, but XLA:CPU expands them away before
    common-subexpression elimination, which then merges a recomputation with the original
    (measured with jax 0.10.2). Of each array the first entry is looked at.
    """
    never = jnp.array(False)
    for leaf in map(jnp.asarray, jax.tree.leaves(tree)):
        if leaf.size and jnp.issubdtype(leaf.dtype, jnp.floating):
            # Once: else each user looks again, and the array lives until the last one has.
            never |= compute_once(leaf.reshape(-1)[0]) < -jnp.inf
        elif leaf.size and jnp.issubdtype(leaf.dtype, jnp.unsignedinteger):
            never |= (leaf.reshape(-1)[0] | 1) == 0
    return never


def tie(tree: Any, to: Any) -> Any:
    """Returns `tree`, bit for bit, its numbers available only after those of `to`."""
    return tie_if(tree, false_that_depends_on(to))


def tie_if(tree: Any, never: Array) -> Any:
    """Returns `tree`, its numbers available only after `never`, false."""

    def wait(x: Any) -> Any:
        if not any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer)):
            return x
        return lax.platform_dependent(x, never, cpu=_wait_by_choice, default=_wait_by_barrier)

    return jax.tree.map(wait, tree)


def _wait_by_choice(x: Array, never: Array) -> Array:
    return jnp.where(never, jnp.zeros((), x.dtype), x)


def _wait_by_barrier(x: Array, never: Array) -> Array:
    """Without the copy of x that a choice is where the next operation takes no fused input.

    The same barrier twice: XLA takes out of a barrier what nobody reads, unless something else
    reads it too, and nothing would wait for a `never` that only one of them holds. (ResNet-18,
    batch 128, bfloat16, policy `blocks`, compiled for an H100 by jax 0.10.2: 300 MiB of
    temporaries with one barrier, 130 with two.)
    """
    for _ in range(2):
        x = lax.optimization_barrier((x, never))[0]
    return x


def compute_once(x: Array) -> Array:
    """`x`, bit for bit, as an array that the compiler writes down and does not compute twice.

    XLA fuses cheap operations into every user of their result. An activation that is kept for the
    backward pass is then not kept: what it was made of is, and that may be several arrays. A
    division counts as costly, so on a CPU each entry is divided by a one not known to be one.
    """

    @jax.custom_jvp
    def once(x: Array) -> Array:
        return lax.platform_dependent(x, cpu=_divide_by_one, default=lax.optimization_barrier)

    once.defjvp(lambda primals, tangents: (once(*primals), *tangents))
    return once(x)


def _divide_by_one(x: Array) -> Array:
    return x / jnp.where(x < -jnp.inf, 2, 1).astype(x.dtype)


@jax.custom_vjp
def cotangent_once(x: Array) -> Array:
    """`x`; in the backward pass its cotangent is written down before it is used, and once.

    For values of several users, whose cotangents would else keep what this one was made of.
    """
    return x


cotangent_once.defvjp(lambda x: (x, None), lambda _, cotangent: (compute_once(cotangent),))


@jax.custom_vjp
def after(x: Array, y: Array) -> Array:
    """`x`, to be used once `y` is there: puts two branches into an order, both ways.

    Forward: `x`, tied to `y`. Backward: `y` gets zeros that wait for the cotangent of x, so that
    what x was used for is done before what made y. Residuals: none but the shape of y.
    """
    return tie(x, to=y)


def _after_fwd(x: Array, y: Array) -> tuple[Array, "_Shape"]:
    return after(x, y), _Shape(y.shape, y.dtype)


def _after_bwd(y: "_Shape", cotangent: Array) -> tuple[Array, Array]:
    zero = jnp.where(false_that_depends_on(cotangent), 1, 0).astype(y.dtype)
    return cotangent, jnp.broadcast_to(zero, y.shape)


after.defvjp(_after_fwd, _after_bwd)


def rebuild_in_backward(fn: Callable[[Any, Array], Array]) -> Callable[[Any, Array], Array]:
    """`fn(factors, x)` that keeps `factors` and `x`, and rebuilds everything else.

    As `factors_first`; besides, the factors wait both times for what they meet, `x` or the
    cotangent: else all kernels of a network are built at the start (ResNet-18, batch 1, temporaries
    of the training step: 38 MiB; 64 without the first wait, 76 without the second, 102 without
    both).
    """
    return factors_first(fn, is_waiting=True)


def factors_first(
    fn: Callable[[Any, Array], Array], *, is_waiting: bool = False
) -> Callable[[Any, Array], Array]:
    """`fn(factors, x)`, linear in x, whose backward pass finishes the factors' cotangents first.

    Forward: `fn(factors, x)`.
    Backward: the vector-Jacobian product of `fn`, evaluated anew. The cotangent of x is given out
    once those of the factors are there: else the compiler puts a weight gradient off, and with it
    lives what it needs (x, the cotangent, and transposed copies of both).
    Residuals: `factors`, and `x` if a factor is differentiated; else only its shape.
    Reverse mode only, to any order.
    """

    def run(factors: Any, x: Array) -> Array:
        return fn(tie(factors, to=x) if is_waiting else factors, x)

    def backward(factors: Any, x: Array, cotangent: Array) -> tuple[Any, Array]:
        factors = tie(factors, to=cotangent) if is_waiting else factors
        x = tie(x, to=cotangent)
        d_factors = jax.vjp(lambda factors: fn(factors, x), factors)[1](cotangent)[0]
        factors = tie(factors, to=d_factors)
        return d_factors, *jax.vjp(lambda x: fn(factors, x), x)[1](cotangent)

    def backward_to_input(factors: Any, shape: "_Shape", cotangent: Array) -> Array:
        factors = tie(factors, to=cotangent) if is_waiting else factors
        zeros = jnp.zeros(shape.shape, shape.dtype)
        return jax.vjp(lambda x: fn(factors, x), zeros)[1](cotangent)[0]

    return keep_inputs(run, backward, backward_to_input)


def keep_inputs(
    fn: Callable[[Any, Array], Array],
    backward: Callable[[Any, Array, Array], tuple[Any, Array]],
    backward_to_input: Callable[[Any, Any, Array], Array],
) -> Callable[[Any, Array], Array]:
    """`fn(factors, x)`, linear in x, with a backward pass that starts from what `fn` was given.

    Forward: `fn(factors, x)`.
    Backward: `backward(factors, x, cotangent)` -> cotangents of both; where no factor is
    differentiated `backward_to_input(factors, shape, cotangent)` -> that of x alone, `shape` being
    what has the shape and dtype of x.
    Residuals: `factors`, and `x` if a factor is differentiated; else only its shape.
    Reverse mode only, to any order that the backward passes allow.
    """

    @jax.custom_vjp
    def call(factors: Any, x: Array) -> Array:
        return fn(factors, x)

    def call_fwd(factors: Any, x: Any) -> tuple[Array, tuple[Any, ...]]:
        is_frozen = not any(leaf.perturbed for leaf in jax.tree.leaves(factors, is_leaf=_is_primal))
        factors = jax.tree.map(lambda leaf: leaf.value, factors, is_leaf=_is_primal)
        x = x.value
        return call(factors, x), (factors, _Shape(x.shape, x.dtype) if is_frozen else x)

    def call_bwd(residuals: tuple[Any, Any], cotangent: Any) -> tuple[Any, Array]:
        factors, x = residuals
        if isinstance(cotangent, SymbolicZero):
            cotangent = jnp.zeros(cotangent.shape, cotangent.dtype)
        if isinstance(x, _Shape):
            d_factors = jax.tree.map(jnp.zeros_like, factors)
            return d_factors, backward_to_input(factors, x, cotangent)
        return backward(factors, x, cotangent)

    call.defvjp(call_fwd, call_bwd, symbolic_zeros=True)
    return call


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]
    dtype: Any


def _is_primal(leaf: Any) -> bool:
    return isinstance(leaf, CustomVJPPrimal)
