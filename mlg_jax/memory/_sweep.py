"""Memory of a training step as a function of the batch size, without running it."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mlg_jax._checks import check_integer
from mlg_jax.memory._compiled import memory_of_gradient
from mlg_jax.memory._program import array_bytes, make_differentiable
from mlg_jax.memory._residuals import residuals_of


@dataclasses.dataclass(frozen=True)
class BatchMemory:
    """Bytes of one training step at one batch size."""

    batch_size: int
    parameter_bytes: int  # of the arrays that are differentiated
    gradient_bytes: int  # equal to `parameter_bytes`
    activation_bytes: int  # of the residuals that are neither arguments nor constants
    temporary_bytes: int | None  # of the compiled step, with the activations; None if unknown


def memory_sweep(
    fn: Callable[..., Any],
    make_args: Callable[[int], Sequence[Any]],
    batch_sizes: Iterable[int],
    *,
    argnums: int | Sequence[int] | None = 0,
    has_aux: bool = False,
    target: str | None = None,
) -> tuple[BatchMemory, ...]:
    """Compiles the value and gradients of `fn` at each batch size and returns their memory.

    Args:
        fn: the function to differentiate, such as a training loss.
        make_args: `make_args(batch_size)` returns its arguments; shapes
            (`jax.ShapeDtypeStruct`) take no memory.
        batch_sizes: integers >= 1.
        argnums: position(s) of the arguments to differentiate with respect to; None for all.
        has_aux: whether `fn` returns `(value, auxiliary output)`.
        target: a GPU to compile for, as in `memory_report`; None: the devices that are here.

    Returns:
        One row per batch size, in the given order.

    Raises:
        TypeError: `fn` or `make_args` is not a function, or a batch size is not an integer.
        ValueError: a batch size is below 1, or the selected arguments hold no floating-point
            array.

    Examples:
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
    return tuple(_row(fn, make_args(size), size, argnums, has_aux, target) for size in sizes)


def _row(
    fn: Callable[..., Any],
    args: Sequence[Any],
    batch_size: int,
    argnums: Any,
    has_aux: bool,
    target: str | None,
) -> BatchMemory:
    program = make_differentiable(fn, args, argnums, has_aux)
    residuals = residuals_of(program)
    compiled = memory_of_gradient(program, target)
    num_bytes = sum(array_bytes(leaf) for leaf in program.parameters)
    return BatchMemory(
        batch_size=int(batch_size),
        parameter_bytes=num_bytes,
        gradient_bytes=num_bytes,
        activation_bytes=sum(row.num_bytes for row in residuals if row.kind == "activation"),
        temporary_bytes=None if compiled is None else compiled.temporary_bytes,
    )
