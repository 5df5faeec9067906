"""What a function keeps for its backward pass: by name, shape, bytes and zero fraction."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from mlg_jax.memory._origin import Origin, find_origins
from mlg_jax.memory._program import Program, array_bytes, make_differentiable


@dataclasses.dataclass(frozen=True)
class Residual:
    """One array that waits for the backward pass."""

    name: str  # argument path, or module scope and operation; unique within one list
    kind: str  # "argument", alive in any case; "constant", of no argument; "activation"
    operation: str  # checkpoint name, else the primitive that made it; "" for an argument
    source: str  # "file.py:12:4 (function)"; "" where JAX knows none
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    zero_fraction: float | None = None  # share of entries == 0; None: nothing was run

    @property
    def is_argument(self) -> bool:
        """Whether it is an argument of the function, such as a parameter."""
        return self.kind == "argument"


@dataclasses.dataclass(frozen=True)
class _Trace:
    """The program that computes residuals, and which of its outputs to look at."""

    program: core.ClosedJaxpr
    outputs: tuple[int, ...]  # one of each array, a named one where there is one
    origins: tuple[Origin, ...]  # one an output
    names: tuple[str, ...]

    def compute(self, leaves: Sequence[Any]) -> list[Any]:
        """The residuals themselves."""
        values = core.jaxpr_as_fun(self.program)(*leaves)
        return [values[index] for index in self.outputs]


def list_residuals(
    fn: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
) -> tuple[Residual, ...]:
    """Lists what `jax.vjp(fn, *args)` keeps, without running anything.

    An array that is kept twice is listed once, under its `checkpoint_name` if it has one: a name
    makes no copy.

    Args:
        fn: the function to be differentiated, of pytrees, returning one.
        args: its arguments; shapes (`jax.ShapeDtypeStruct`) will do.
        argnums: the arguments it is differentiated by; None for all, as `jax.vjp` does.
        has_aux: whether `fn` returns `(value, auxiliary output)`.

    Returns:
        The residuals, in JAX's order, zero fractions None.

    Raises:
        TypeError: `fn` is no function, or `argnums` no integers.
        ValueError: there is nothing to differentiate by.

    Example:
        >>> from mlg_jax.memory import list_residuals
        >>> [row] = list_residuals(jnp.sin, jax.ShapeDtypeStruct((4, 8), jnp.float32))
        >>> row.name, row.kind, row.shape, row.num_bytes
        ('cos', 'activation', (4, 8), 128)
    """
    return residuals_of(make_differentiable(fn, args, argnums, has_aux))


def residuals_of(program: Program) -> tuple[Residual, ...]:
    """As `list_residuals`, of a program."""
    return _rows(_trace(program))


def measured_residuals(program: Program) -> tuple[Residual, ...]:
    """As `residuals_of`, with zero fractions: runs the forward pass, compiled.

    Keys of random numbers and empty arrays have none.
    """
    trace = _trace(program)
    count = jax.jit(lambda leaves: [_zero_counts(value) for value in trace.compute(leaves)])
    fractions = [
        None if counts is None or row.num_bytes == 0 else _fraction(counts, row.shape)
        for counts, row in zip(count(list(program.leaves)), _rows(trace), strict=True)
    ]
    return tuple(
        dataclasses.replace(row, zero_fraction=fraction)
        for row, fraction in zip(_rows(trace), fractions, strict=True)
    )


def residual_densities(
    fn: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
) -> dict[str, jax.Array]:
    """The share of entries that are not zero, of every activation that is kept.

    Pure and compilable: `jax.jit(functools.partial(residual_densities, loss))(params, batch)` is
    what a loop feeds to `update_densities`.

    Args:
        fn: as for `list_residuals`.
        args: arrays, or tracers of them.
        argnums: as for `list_residuals`.
        has_aux: as for `list_residuals`.

    Returns:
        float32 scalars by residual name; empty arrays and random keys are left out.

    Raises:
        TypeError: as for `list_residuals`.
        ValueError: as for `list_residuals`.

    Example:
        >>> from mlg_jax.memory import residual_densities
        >>> densities = residual_densities(lambda x: jnp.sin(x) ** 2, jnp.zeros(4))
        >>> {name: float(value) for name, value in densities.items()}
        {'cos': 1.0, 'mul': 0.0}
    """
    program = make_differentiable(fn, args, argnums, has_aux)
    trace = _trace(program)
    values = zip(trace.names, trace.origins, trace.compute(program.leaves), strict=True)
    counts = {
        name: (_zero_counts(value), value.size)
        for name, origin, value in values
        if origin.kind == "activation" and value.size
    }
    return {
        name: 1.0 - jnp.sum(zeros, dtype=jnp.float32) / size
        for name, (zeros, size) in counts.items()
        if zeros is not None
    }


def _trace(program: Program) -> _Trace:
    def residuals(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(program.vjp(leaves)[1])

    traced = jax.make_jaxpr(residuals)(*program.leaves)
    origins = find_origins(traced, program.names)
    best: dict[tuple[int, ...], int] = {}
    for index, origin in enumerate(origins):
        other = best.setdefault(origin.identity, index)
        if origin.is_named and not origins[other].is_named:
            best[origin.identity] = index
    outputs = tuple(sorted(best.values()))
    kept = tuple(origins[index] for index in outputs)
    return _Trace(traced, outputs, kept, _numbered([origin.name for origin in kept]))


def _rows(trace: _Trace) -> tuple[Residual, ...]:
    shapes = [trace.program.out_avals[index] for index in trace.outputs]
    return tuple(
        Residual(
            name=name,
            kind=origin.kind,
            operation=origin.operation,
            source=origin.source,
            shape=tuple(shape.shape),
            dtype=str(shape.dtype),
            num_bytes=array_bytes(shape),
        )
        for name, origin, shape in zip(trace.names, trace.origins, shapes, strict=True)
    )


def _numbered(names: Sequence[str]) -> tuple[str, ...]:
    """Second and later uses of a name get a number: "cos", "cos#2"."""
    seen: collections.Counter[str] = collections.Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(unique)


def _zero_counts(value: Any) -> Any:
    """Zeros in each row, int32: one sum over an array of 2**31 entries would overflow."""
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return None
    return jnp.sum(value == 0, axis=tuple(range(1, value.ndim)), dtype=jnp.int32)


def _fraction(counts: Any, shape: Sequence[int]) -> float:
    return int(np.sum(np.asarray(counts), dtype=np.int64)) / int(np.prod(shape, dtype=object))
