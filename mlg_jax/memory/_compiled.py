"""Bytes of a compiled program: arguments, outputs, temporaries."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mlg_jax.memory._program import Program, make_differentiable, make_program


@dataclasses.dataclass(frozen=True)
class CompiledMemory:
    """What one device sets aside to run a program, in bytes, as its compiler planned it.

    The compiler's own `peak_memory_in_bytes` is not among them: on CPU it is wrong.
    """

    argument_bytes: int
    output_bytes: int
    temporary_bytes: int  # alive only inside the program: residuals, gradients' working set
    alias_bytes: int  # outputs that lie in donated arguments
    flops: float | None = None  # by XLA's cost model, a loop's body once; None: it has none

    @property
    def total_bytes(self) -> int:
        """Arguments, outputs and temporaries, what is aliased once."""
        return self.argument_bytes + self.output_bytes + self.temporary_bytes - self.alias_bytes


def compiled_memory(fn: Callable[..., Any], *args: Any) -> CompiledMemory | None:
    """Compiles `fn(*args)`, runs nothing, and reads off its memory.

    Args:
        fn: a function of pytrees; one that is jitted already keeps its donations and shardings.
        args: its arguments; shapes (`jax.ShapeDtypeStruct`) will do.

    Returns:
        Bytes and FLOPs a device; None where the backend does not tell.

    Raises:
        TypeError: `fn` is no function.

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
    """As `compiled_memory`, of the program that returns value and gradients.

    The gradient is that of the sum of all entries of the value; arguments that nothing needs are
    dropped by the compiler and not counted.

    Args:
        fn: the function to be differentiated.
        args: its arguments, or their shapes.
        argnums: the arguments it is differentiated by; None for all.
        has_aux: whether `fn` returns `(value, auxiliary output)`.

    Returns:
        Bytes and FLOPs a device; None where the backend does not tell.

    Raises:
        TypeError: `fn` is no function, or `argnums` no integers.
        ValueError: there is nothing to differentiate by.

    Example:
        >>> from mlg_jax.memory import gradient_memory
        >>> memory = gradient_memory(lambda x: jnp.sum(jnp.sin(x)), jnp.ones(8))
        >>> memory.argument_bytes, memory.output_bytes  # the gradient, the value; a table of two
        (32, 52)
    """
    return memory_of(compile_gradient(make_differentiable(fn, args, argnums, has_aux)))


def compile_gradient(program: Program) -> jax.stages.Compiled:
    """The compiled `(value, gradients, aux)` of a program, a function of its list of leaves."""
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
    """XLA's count; it says -1 where it does not know."""
    costs: Any = compiled.cost_analysis() or {}
    flops = costs.get("flops")
    return None if flops is None or flops < 0 else float(flops)
