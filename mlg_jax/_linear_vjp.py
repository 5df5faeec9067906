"""Custom VJPs of functions that are linear in x: their residuals and the order of their steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import CustomVJPPrimal

from mlg_jax._ordering import ShapeOf, instantiate, vary_alike, wait_for

Build = Callable[[Any], Any]  # factors -> kernel
Product = Callable[[Any, Array], Array]  # (kernel, x) -> y, linear in x


def rebuild_in_backward(build: Build, product: Product) -> Product:
    """Returns `(factors, x) -> product(build(factors), x)`, which saves only factors and x.

    Like `weight_grad_first`, but the factors also wait for the array with which they are combined:
    x in the forward pass, the cotangent in the backward pass. Otherwise XLA builds the kernels of
    all layers at the start. (ResNet-18, batch 1, temporaries of a training step: 38 MiB; 64 MiB
    without the first wait, 76 MiB without the second, 102 MiB without both.)
    """
    return _ordered(build, product, wait_for)


def weight_grad_first(product: Product) -> Product:
    """Returns `product(kernel, x)` whose backward pass computes the weight gradient first.

    Forward: `product(kernel, x)`.
    Backward: the vector-Jacobian product of a second evaluation. The cotangent of x waits for that
    of the kernel. Otherwise the compiler postpones the weight gradients and meanwhile keeps x, the
    cotangent and transposed copies of both.
    Residuals: `kernel`, and `x` if the kernel is differentiated; otherwise only the shape of x.
    Reverse mode only, to any order.
    """
    return _ordered(lambda kernel: kernel, product, lambda kernel, _: kernel)


def _ordered(build: Build, product: Product, wait: Callable[[Any, Array], Any]) -> Product:
    """See the two functions above; `wait(factors, array)` may tie the factors to the array."""

    def run(factors: Any, x: Array) -> Array:
        return product(build(wait(factors, x)), x)

    def backward_on_cpu(factors: Any, x: Array, cotangent: Array) -> tuple[Any, Array]:
        """Builds the kernel twice: XLA:CPU would copy one that waits for its own gradient."""
        factors = wait(factors, cotangent)
        x = wait_for(x, cotangent)
        d_factors = jax.vjp(lambda factors: product(build(factors), x), factors)[1](cotangent)[0]
        factors = wait_for(factors, d_factors)
        return d_factors, *jax.vjp(lambda x: product(build(factors), x), x)[1](cotangent)

    def backward_elsewhere(factors: Any, x: Array, cotangent: Array) -> tuple[Any, Array]:
        kernel, pull = jax.vjp(build, wait(factors, cotangent))
        d_kernel, d_x = jax.vjp(product, kernel, x)[1](cotangent)
        (d_factors,) = pull(d_kernel)
        return d_factors, wait_for(d_x, d_kernel)

    def backward(factors: Any, x: Array, cotangent: Array) -> tuple[Any, Array]:
        return lax.platform_dependent(
            factors, x, cotangent, cpu=backward_on_cpu, default=backward_elsewhere
        )

    def backward_to_input(factors: Any, shape: ShapeOf, cotangent: Array) -> Array:
        kernel = build(wait(factors, cotangent))
        zeros = jnp.zeros(shape.shape, shape.dtype)
        return jax.vjp(lambda x: product(kernel, x), zeros)[1](cotangent)[0]

    return keep_inputs(run, backward, backward_to_input)


def keep_inputs(
    fn: Product,
    backward: Callable[[Any, Array, Array], tuple[Any, Array]],
    backward_to_input: Callable[[Any, Any, Array], Array],
) -> Product:
    """Returns `fn(factors, x)`, linear in x, with a given backward pass from its inputs.

    Forward: `fn(factors, x)`.
    Backward: `backward(factors, x, cotangent)` returns the cotangents of both. If no factor is
    differentiated, `backward_to_input(factors, shape, cotangent)` returns the cotangent of x alone;
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
