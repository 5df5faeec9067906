"""Memory over batch sizes: parameters, gradients, activations, temporaries; nothing is run."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mlg_jax._checks import check_integer
from mlg_jax.memory._compiled import compile_gradient, memory_of
from mlg_jax.memory._program import array_bytes, make_differentiable
from mlg_jax.memory._residuals import residuals_of


@dataclasses.dataclass(frozen=True)
class BatchMemory:
    """Bytes of one training step at one batch size."""

    batch_size: int
    parameter_bytes: int  # what is differentiated by
    gradient_bytes: int  # one a parameter, of its type
    activation_bytes: int  # residuals that are neither arguments nor constants
    temporary_bytes: int | None  # of the compiled step, activations among them; None: not told


def memory_sweep(
    fn: Callable[..., Any],
    make_args: Callable[[int], Sequence[Any]],
    batch_sizes: Iterable[int],
    *,
    argnums: int | Sequence[int] | None = 0,
    has_aux: bool = False,
) -> tuple[BatchMemory, ...]:
    """Compiles value and gradients of `fn` at each batch size and reads off the memory.

    Args:
        fn: the function to be differentiated, such as a training loss.
        make_args: `make_args(batch_size)` are its arguments; shapes will do, and cost no memory.
        batch_sizes: each 1 or more.
        argnums: the arguments that are parameters; None for all.
        has_aux: whether `fn` returns `(value, auxiliary output)`.

    Returns:
        One row a batch size, in the given order.

    Raises:
        TypeError: `fn` or `make_args` is no function, or a batch size no integer.
        ValueError: a batch size below 1, or nothing to differentiate by.

    Example:
        >>> from mlg_jax.memory import memory_sweep
        >>> def make_args(batch_size):
        ...     return jnp.ones((8, 4)), jax.ShapeDtypeStruct((batch_size, 8), jnp.float32)
        >>> rows = memory_sweep(lambda w, x: jnp.sum(jnp.sin(x @ w)), make_args, [1, 2])
        >>> [(row.batch_size, row.parameter_bytes, row.activation_bytes) for row in rows]
        [(1, 128, 16), (2, 128, 32)]
    """
    if not callable(make_args):
        raise TypeError(f"`make_args` must be a function; got {make_args!r}.")
    sizes = list(batch_sizes)
    for size in sizes:
        check_integer("batch_sizes", size, 1)
    return tuple(_row(fn, make_args(size), size, argnums, has_aux) for size in sizes)


def _row(
    fn: Callable[..., Any], args: Sequence[Any], batch_size: int, argnums: Any, has_aux: bool
) -> BatchMemory:
    program = make_differentiable(fn, args, argnums, has_aux)
    residuals = residuals_of(program)
    compiled = memory_of(compile_gradient(program))
    num_bytes = sum(array_bytes(leaf) for leaf in program.parameters)
    return BatchMemory(
        batch_size=int(batch_size),
        parameter_bytes=num_bytes,
        gradient_bytes=num_bytes,
        activation_bytes=sum(row.num_bytes for row in residuals if row.kind == "activation"),
        temporary_bytes=None if compiled is None else compiled.temporary_bytes,
    )
