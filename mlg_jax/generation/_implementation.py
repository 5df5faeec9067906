"""Forward and backward pass of a layer on one kind of device, by parts of the batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mlg_jax._linear_vjp import keep_inputs
from mlg_jax._ordering import materialize, opaque_false, wait_for
from mlg_jax._types import Array


@dataclasses.dataclass(frozen=True)
class Implementation:
    """The passes of a layer on one kind of device.

    Attributes:
        prepare: `factors -> prepared`, the small arrays by which both passes multiply.
        forward: `(prepared, x) -> y`, linear in x and independent for each example.
        backward: `(prepared, x, cotangent) -> (d_prepared, d_x)`; None derives it from `forward`.
        num_parts: number of equal parts of the batch that run one after another, to keep
            temporaries small.
    """

    prepare: Callable[[Any], Any]
    forward: Callable[[Any, Array], Array]
    backward: Callable[[Any, Array, Array], tuple[Any, Array]] | None = None
    num_parts: int = 1

    def run(self, factors: Any, x: Array) -> Array:
        """The layer's output."""
        prepared = _written_down(self.prepare(factors))
        return over_parts(lambda x: (None, self.forward(prepared, x)), self.num_parts, x)[1]

    def run_backward(self, factors: Any, x: Array, cotangent: Array) -> tuple[Any, Array]:
        """The cotangents of the factors and of x."""
        # Otherwise XLA merges the recomputation with the original and keeps x and its operands.
        factors, x = wait_for((factors, x), cotangent)
        prepared, pull = jax.vjp(self.prepare, factors)
        prepared = _written_down(prepared)
        d_prepared, d_x = over_parts(
            lambda x, ct: self._backward(prepared, x, ct), self.num_parts, x, cotangent
        )
        if self.num_parts == 1:
            # Otherwise d_prepared is postponed, and x and the cotangent stay alive until then.
            d_x = wait_for(d_x, d_prepared)
        return *pull(d_prepared), d_x

    def run_backward_to_input(self, factors: Any, x: Any, cotangent: Array) -> Array:
        """The cotangent of x alone; only the shape and dtype of `x` are known."""
        prepared = _written_down(self.prepare(wait_for(factors, cotangent)))

        def part(ct: Array) -> tuple[None, Array]:
            zeros = jnp.zeros((len(ct), *x.shape[1:]), x.dtype)
            return None, self._backward(prepared, zeros, ct)[1]

        return over_parts(part, self.num_parts, cotangent)[1]

    def _backward(self, prepared: Any, x: Array, cotangent: Array) -> tuple[Any, Array]:
        if self.backward is not None:
            return self.backward(prepared, x, cotangent)
        return jax.vjp(self.forward, prepared, x)[1](cotangent)


def dispatch_by_platform(
    factors: Any, x: Array, *, cpu: Implementation, default: Implementation
) -> Array:
    """The layer's output, by the `Implementation` for the platform that a program is lowered for.

    Residuals: `factors`, and `x` if a factor is differentiated; otherwise only the shape of x.
    """

    def choose(name: str) -> Callable[..., Any]:
        return lambda *args: lax.platform_dependent(
            *args, cpu=getattr(cpu, name), default=getattr(default, name)
        )

    def to_input(factors: Any, shape: Any, cotangent: Array) -> Array:
        return lax.platform_dependent(
            factors,
            cotangent,
            cpu=lambda f, ct: cpu.run_backward_to_input(f, shape, ct),
            default=lambda f, ct: default.run_backward_to_input(f, shape, ct),
        )

    return keep_inputs(choose("run"), choose("run_backward"), to_input)(factors, x)


def over_parts(
    fn: Callable[..., tuple[Any, Array]], num_parts: int, *arrays: Array
) -> tuple[Any, Array]:
    """Runs `fn(*arrays) -> (sums, y)` part by part, adding up the sums and joining the rows of y.

    A part consists of every `num_parts`-th row, so that a sharded batch needs no communication.
    """
    if num_parts == 1:
        return fn(*arrays)
    split = [a.reshape(-1, num_parts, *a.shape[1:]) for a in arrays]

    def part(i: Any) -> tuple[Any, Array]:
        return fn(*(lax.dynamic_index_in_dim(a, i, 1, keepdims=False) for a in split))

    def add(i: Any, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        sums, y = part(i)
        rows = lax.dynamic_update_index_in_dim(carry[1], y, i, 1)
        return jax.tree.map(jnp.add, carry[0], sums), rows

    sums, y = jax.eval_shape(part, 0)
    rows = jax.ShapeDtypeStruct((y.shape[0], num_parts, *y.shape[1:]), y.dtype)
    # Zeros that depend on the arrays: otherwise XLA allocates them at the start of the program.
    zero = jnp.where(opaque_false(arrays), 1, 0)
    start = jax.tree.map(lambda s: jnp.full(s.shape, zero, s.dtype), (sums, rows))
    sums, filled = lax.fori_loop(0, num_parts, add, start)
    return sums, filled.reshape(-1, *y.shape[1:])


def _written_down(prepared: Any) -> Any:
    """Materialises the prepared arrays on CPU.

    Otherwise XLA fuses the transposition into every loop. Elsewhere they are operands of library
    calls, which need them in memory.
    """
    return jax.tree.map(
        lambda x: lax.platform_dependent(x, cpu=materialize, default=lambda x: x), prepared
    )
