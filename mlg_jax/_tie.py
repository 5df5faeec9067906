"""Ordering without barriers: a data dependency that no compiler pass can remove."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def zero_that_depends_on(tree: Any) -> Array:
    """A float32 zero that the compiler can only know once the first array of `tree` is computed.

    "x if x < -inf else 0" is zero for every x, NaN included, and XLA does not simplify it.
    Optimization barriers would say the same, but XLA:CPU expands them away before
    common-subexpression elimination, which then merges a recomputation with the original
    (measured with jax 0.10.2).
    """
    leaf = next(x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating))
    entry = leaf.reshape(-1)[0].astype(jnp.float32)
    return jnp.where(entry < -jnp.inf, entry, 0.0)


def tie(tree: Any, to: Any) -> Any:
    """Returns `tree` unchanged in value, every floating leaf of it available only after `to`.

    Adding zero turns -0.0 into +0.0; use it where that does not matter.
    """
    zero = zero_that_depends_on(to)
    return jax.tree.map(
        lambda x: x + zero.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def rebuild_in_backward(
    fn: Callable[[Any, Array], Array],
) -> Callable[[Any, Array], Array]:
    """`fn(factors, x)` whose backward pass keeps `factors` and `x` and rebuilds everything else.

    Forward: `fn(factors, x)`.
    Backward: the vector-Jacobian product of `fn`, evaluated anew once the cotangent is there.
    Residuals: `factors` and `x`; what `fn` makes of the factors (the kernel) is never kept.
    Both times the factors wait for what they meet, `x` or the cotangent: else all kernels of a
    network are built at the start (ResNet-18, batch 1, temporaries of the training step: 38 MiB;
    64 without the first tie, 76 without the second, 102 without both).
    Reverse mode only, to any order.
    """

    @jax.custom_vjp
    def call(factors: Any, x: Array) -> Array:
        return fn(tie(factors, to=x), x)

    def call_fwd(factors: Any, x: Array) -> tuple[Array, tuple[Any, Array]]:
        return call(factors, x), (factors, x)

    def call_bwd(residuals: tuple[Any, Any], cotangent: Any) -> tuple[Any, Array]:
        factors, x = residuals
        _, vjp = jax.vjp(fn, tie(factors, to=cotangent), x)
        return vjp(cotangent)

    call.defvjp(call_fwd, call_bwd)
    return call
