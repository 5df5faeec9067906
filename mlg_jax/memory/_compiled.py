"""Memory of a compiled program: arguments, outputs and temporaries."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from mlg_jax.memory._bytes import CompiledMemory, memory_of
from mlg_jax.memory._program import Program, make_differentiable, make_program
from mlg_jax.memory._target_program import compile_leaves


def compiled_memory(
    fn: Callable[..., Any], *args: Any, target: str | None = None
) -> CompiledMemory | None:
    """Compiles `fn(*args)` without running it, and returns the memory that it needs.

    Args:
        fn: a function of pytrees; a jitted one keeps its donations and shardings.
        args: its arguments, or their shapes (`jax.ShapeDtypeStruct`).
        target: a GPU to compile for, as in `memory_report`; None: the devices that are here.

    Returns:
        Bytes and FLOPs per device; None if the backend does not report them.

    Raises:
        TypeError: `fn` is not a function.
        ImportError, TargetError: as in `memory_report`.

    Examples:
        >>> from mlg_jax.memory import compiled_memory
        >>> memory = compiled_memory(jnp.add, jnp.ones(8), jnp.ones(8))
        >>> memory.argument_bytes, memory.output_bytes, memory.alias_bytes
        (64, 32, 0)
    """
    if target is not None:
        program = make_program(fn, args)
        return compile_leaves(target, program.call, program.leaves).memory
    if isinstance(fn, jax.stages.Wrapped):
        return memory_of(fn.lower(*args).compile())
    program = make_program(fn, args)
    return memory_of(jax.jit(program.call).lower(list(program.leaves)).compile())


def gradient_memory(
    fn: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    target: str | None = None,
) -> CompiledMemory | None:
    """`compiled_memory` of the program that returns the value and the gradients of `fn`.

    The gradients are those of the sum of all entries of the value. Arguments that the program does
    not need are dropped by the compiler and not counted.

    Args:
        fn: the function to differentiate.
        args: its arguments, or their shapes (`jax.ShapeDtypeStruct`).
        argnums: position(s) of the arguments to differentiate with respect to; None for all.
        has_aux: whether `fn` returns `(value, auxiliary output)`.
        target: as in `compiled_memory`.

    Returns:
        Bytes and FLOPs per device; None if the backend does not report them.

    Raises:
        TypeError: `fn` is not a function, or `argnums` is not made of integers.
        ValueError: the selected arguments hold no floating-point array.

    Examples:
        >>> from mlg_jax.memory import gradient_memory
        >>> memory = gradient_memory(lambda x: jnp.sum(jnp.sin(x)), jnp.ones(8))
        >>> memory.argument_bytes, memory.output_bytes  # value, gradient, two 8-byte pointers
        (32, 52)
    """
    return memory_of_gradient(make_differentiable(fn, args, argnums, has_aux), target)


def memory_of_gradient(program: Program, target: str | None) -> CompiledMemory | None:
    """`gradient_memory` of a program."""
    if target is None:
        return memory_of(compile_gradient(program))
    return compile_leaves(target, program.value_and_gradient, program.leaves).memory


def compile_gradient(program: Program) -> jax.stages.Compiled:
    """Compiles the function `leaves -> (value, gradients, aux)` of a program."""
    return jax.jit(program.value_and_gradient).lower(list(program.leaves)).compile()
