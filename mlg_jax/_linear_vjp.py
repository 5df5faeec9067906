"""Backward passes of functions that are linear in x: what they keep, in which order they run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import CustomVJPPrimal

from mlg_jax._ordering import ShapeOf, instantiate, vary_alike, wait_for

Product = Callable[[Any, Array], Array]  # (factors, x) -> y, linear in x


def rebuild_in_backward(fn: Product) -> Product:
    """`fn(factors, x)` that keeps `factors` and `x`, and rebuilds everything else.

    As `weight_grad_first`, except that the factors also wait for the array that they meet in each
    pass, `x` or the cotangent. Otherwise all kernels of a network are built at the start
    (ResNet-18, batch 1, temporaries of the training step: 38 MiB; 64 without the first wait, 76
    without the second, 102 without both).
    """
    return _ordered(fn, wait_for)


def weight_grad_first(fn: Product) -> Product:
    """`fn(factors, x)`, linear in x, whose backward pass finishes the factors' cotangents first.

    Forward: `fn(factors, x)`.
    Backward: the vector-Jacobian product of `fn`, which is evaluated again. The cotangent of x is
    released once those of the factors are there. Otherwise the compiler postpones the weight
    gradient and keeps what it needs: x, the cotangent, and transposed copies of both.
    Residuals: `factors`, and `x` if a factor is differentiated; otherwise only its shape.
    Reverse mode only, to any order.
    """
    return _ordered(fn, lambda factors, _: factors)


def _ordered(fn: Product, wait: Callable[[Any, Array], Any]) -> Product:
    """`wait(factors, array)` returns the factors, available before or after the array."""

    def run(factors: Any, x: Array) -> Array:
        return fn(wait(factors, x), x)

    def backward(factors: Any, x: Array, cotangent: Array) -> tuple[Any, Array]:
        factors = wait(factors, cotangent)
        x = wait_for(x, cotangent)
        d_factors = jax.vjp(lambda factors: fn(factors, x), factors)[1](cotangent)[0]
        factors = wait_for(factors, d_factors)
        return d_factors, *jax.vjp(lambda x: fn(factors, x), x)[1](cotangent)

    def backward_to_input(factors: Any, shape: ShapeOf, cotangent: Array) -> Array:
        factors = wait(factors, cotangent)
        zeros = jnp.zeros(shape.shape, shape.dtype)
        return jax.vjp(lambda x: fn(factors, x), zeros)[1](cotangent)[0]

    return keep_inputs(run, backward, backward_to_input)


def keep_inputs(
    fn: Product,
    backward: Callable[[Any, Array, Array], tuple[Any, Array]],
    backward_to_input: Callable[[Any, Any, Array], Array],
) -> Product:
    """`fn(factors, x)`, linear in x, with a backward pass that starts from the inputs of `fn`.

    Forward: `fn(factors, x)`.
    Backward: `backward(factors, x, cotangent)` -> cotangents of both. Where no factor is
    differentiated, `backward_to_input(factors, shape, cotangent)` -> the cotangent of x alone;
    `shape` has the shape and dtype of x.
    Residuals: `factors`, and `x` if a factor is differentiated; otherwise only its shape.
    Reverse mode only, to any order that the backward passes allow. The backward passes multiply
    with the precision that the forward pass found (`jax.default_matmul_precision`).
    """
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]

    @jax.custom_vjp
    def call(factors: Any, x: Array) -> Array:
        return fn(factors, x)

    def call_fwd(factors: Any, x: Any) -> tuple[Array, tuple[Any, ...]]:
        is_frozen = not any(leaf.perturbed for leaf in jax.tree.leaves(factors, is_leaf=_is_primal))
        factors = jax.tree.map(lambda leaf: leaf.value, factors, is_leaf=_is_primal)
        x = x.value
        return call(factors, x), (factors, ShapeOf(x.shape, x.dtype) if is_frozen else x)

    def call_bwd(residuals: tuple[Any, Any], cotangent: Any) -> tuple[Any, Array]:
        factors, x = residuals
        cotangent = instantiate(cotangent)
        with jax.default_matmul_precision(precision):
            if isinstance(x, ShapeOf):
                d_factors = jax.tree.map(jnp.zeros_like, factors)
                return d_factors, backward_to_input(factors, x, cotangent)
            return backward(factors, x, cotangent)

    call.defvjp(call_fwd, call_bwd, symbolic_zeros=True)
    return lambda factors, x: call(*vary_alike((factors, x)))


def _is_primal(leaf: Any) -> bool:
    return isinstance(leaf, CustomVJPPrimal)
