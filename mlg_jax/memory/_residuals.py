"""The residuals of a function: name, shape, bytes and zero fraction of each saved array."""

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
    """One array that is saved for the backward pass."""

    name: str  # argument path, or module scope and operation; unique within one list
    kind: str  # "argument" (live anyway), "constant" (depends on no argument) or "activation"
    operation: str  # checkpoint name, or the primitive that made it; "" for an argument
    source: str  # "file.py:12:4 (function)"; "" if unknown
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    zero_fraction: float | None = None  # share of zero entries; None if nothing was run


@dataclasses.dataclass(frozen=True)
class _Trace:
    """The program that computes the residuals, and its distinct outputs."""

    program: core.ClosedJaxpr
    outputs: tuple[int, ...]  # one position per distinct array, preferably with a checkpoint name
    origins: tuple[Origin, ...]  # one per output
    names: tuple[str, ...]  # one per output, unique

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
    """Lists the arrays that `jax.vjp(fn, *args)` saves, without running anything.

    An array that is saved twice is listed once, under its `checkpoint_name` if it has one (naming
    an array does not copy it).

    Args:
        fn: the function to differentiate; its arguments and value are pytrees.
        args: its arguments, or their shapes (`jax.ShapeDtypeStruct`).
        argnums: position(s) of the arguments to differentiate with respect to; None for all.
        has_aux: whether `fn` returns `(value, auxiliary output)`.

    Returns:
        The residuals in JAX's order; their zero fractions are None.

    Raises:
        TypeError: `fn` is not a function, or `argnums` is not made of integers.
        ValueError: the selected arguments hold no floating-point array.

    Examples:
        >>> from mlg_jax.memory import list_residuals
        >>> [row] = list_residuals(jnp.sin, jax.ShapeDtypeStruct((4, 8), jnp.float32))
        >>> row.name, row.kind, row.shape, row.num_bytes
        ('cos', 'activation', (4, 8), 128)
    """
    return residuals_of(make_differentiable(fn, args, argnums, has_aux))


def residuals_of(program: Program) -> tuple[Residual, ...]:
    """`list_residuals` for a program."""
    return _rows(_trace(program))


def measured_residuals(program: Program) -> tuple[Residual, ...]:
    """`residuals_of` with zero fractions, for which the compiled forward pass is run.

    Random keys and empty arrays have the zero fraction None.
    """
    trace = _trace(program)
    count = jax.jit(lambda leaves: [_zero_counts(value) for value in trace.compute(leaves)])
    return tuple(
        row
        if counts is None or row.num_bytes == 0
        else dataclasses.replace(row, zero_fraction=_fraction(counts, row.shape))
        for counts, row in zip(count(list(program.leaves)), _rows(trace), strict=True)
    )


def residual_densities(
    fn: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
) -> dict[str, jax.Array]:
    """The density (share of non-zero entries) of every saved activation.

    Pure and can be compiled: a training loop may pass the result of
    `jax.jit(functools.partial(residual_densities, loss))(params, batch)` to `update_densities`.

    Args:
        fn: as in `list_residuals`.
        args: arrays or tracers.
        argnums: as in `list_residuals`.
        has_aux: as in `list_residuals`.

    Returns:
        float32 scalars by residual name, without empty arrays and random keys.

    Raises:
        TypeError, ValueError: as in `list_residuals`.

    Examples:
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
    """Makes names unique by numbering their second and later uses: "cos", "cos#2"."""
    seen: collections.Counter[str] = collections.Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(unique)


def _zero_counts(value: Any) -> Any:
    """Zeros per index of the first axis, int32; a total could overflow. None for random keys."""
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return None
    return jnp.sum(value == 0, axis=tuple(range(1, value.ndim)), dtype=jnp.int32)


def _fraction(counts: Any, shape: Sequence[int]) -> float:
    return int(np.sum(np.asarray(counts), dtype=np.int64)) / int(np.prod(shape, dtype=object))
