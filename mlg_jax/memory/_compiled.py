"""Memory of a compiled program: arguments, outputs and temporaries."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mlg_jax.memory._program import Program, make_differentiable, make_program


@dataclasses.dataclass(frozen=True)
class CompiledMemory:
    """Memory of a program on one device in bytes, as planned by the compiler.

    XLA's own `peak_memory_in_bytes` is left out because it is wrong on CPU.
    """

    argument_bytes: int
    output_bytes: int
    temporary_bytes: int  # live only inside the program, e.g. residuals
    alias_bytes: int  # outputs that reuse the memory of donated arguments
    flops: float | None = None  # XLA's estimate, loop bodies counted once; None if unknown

    @property
    def total_bytes(self) -> int:
        """Arguments, outputs and temporaries; aliased memory is counted once."""
        return self.argument_bytes + self.output_bytes + self.temporary_bytes - self.alias_bytes


def compiled_memory(fn: Callable[..., Any], *args: Any) -> CompiledMemory | None:
    """Compiles `fn(*args)` without running it, and returns the memory that it needs.

    Args:
        fn: a function of pytrees; a jitted one keeps its donations and shardings.
        args: its arguments, or their shapes (`jax.ShapeDtypeStruct`).

    Returns:
        Bytes and FLOPs per device; None if the backend does not report them.

    Raises:
        TypeError: `fn` is not a function.

    Example:
        >>> from mlg_jax.memory import compiled_memory
        >>> memory = compiled_memory(jnp.add, jnp.ones(8), jnp.ones(8))
        >>> memory.argument_bytes, memory.output_bytes, memory.alias_bytes
        (64, 32, 0)
    """
    if isinstance(fn, jax.stages.Wrapped):
        return memory_of(fn.lower(*args).compile())
    program = make_program(fn, args)
    return memory_of(jax.jit(program.call).lower(list(program.leaves)).compile())


def gradient_memory(
    fn: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
) -> CompiledMemory | None:
    """`compiled_memory` of the program that returns the value and the gradients of `fn`.

    The gradients are those of the sum of all entries of the value. Arguments that the program does
    not need are dropped by the compiler and not counted.

    Args:
        fn: the function to differentiate.
        args: its arguments, or their shapes (`jax.ShapeDtypeStruct`).
        argnums: position(s) of the arguments to differentiate with respect to; None for all.
        has_aux: whether `fn` returns `(value, auxiliary output)`.

    Returns:
        Bytes and FLOPs per device; None if the backend does not report them.

    Raises:
        TypeError: `fn` is not a function, or `argnums` is not made of integers.
        ValueError: the selected arguments hold no floating-point array.

    Example:
        >>> from mlg_jax.memory import gradient_memory
        >>> memory = gradient_memory(lambda x: jnp.sum(jnp.sin(x)), jnp.ones(8))
        >>> memory.argument_bytes, memory.output_bytes  # value, gradient, two 8-byte pointers
        (32, 52)
    """
    return memory_of(compile_gradient(make_differentiable(fn, args, argnums, has_aux)))


def compile_gradient(program: Program) -> jax.stages.Compiled:
    """Compiles the function `leaves -> (value, gradients, aux)` of a program."""
    return jax.jit(program.value_and_gradient).lower(list(program.leaves)).compile()


def memory_of(compiled: jax.stages.Compiled) -> CompiledMemory | None:
    """Reads the memory of a compiled program."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return CompiledMemory(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        flops=_flops(compiled),
    )


def _flops(compiled: jax.stages.Compiled) -> float | None:
    """XLA's estimate; it is -1 where XLA does not know."""
    costs: Any = compiled.cost_analysis() or {}
    flops = costs.get("flops")
    return None if flops is None or flops < 0 else float(flops)
