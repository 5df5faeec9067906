"""A function with its arguments as a program of a flat list of arrays, and its gradient."""

import dataclasses
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_TRACED = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct, float, complex)


@dataclasses.dataclass(frozen=True)
class Program:
    """A function `call(leaves)`, to be differentiated with respect to some of its leaves.

    Leaves are arrays, shapes or Python floats. All other values among the arguments (strings,
    bools, integers, modules) are constants of `call`.
    """

    call: Callable[[Sequence[Any]], Any]
    leaves: tuple[Any, ...]
    names: tuple[str, ...]  # one per leaf, such as `args[0]['params']['conv1']['kernel']`
    is_differentiated: tuple[bool, ...]
    has_aux: bool = False

    @property
    def is_abstract(self) -> bool:
        """Whether a leaf is a shape without values, so that the program cannot be run."""
        return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in self.leaves)

    @property
    def parameters(self) -> tuple[Any, ...]:
        """The leaves with respect to which the program is differentiated."""
        pairs = zip(self.leaves, self.is_differentiated, strict=True)
        return tuple(leaf for leaf, is_differentiated in pairs if is_differentiated)

    def vjp(self, leaves: Sequence[Any]) -> tuple[Any, Callable[[Any], Any], Any]:
        """Returns `(value, pullback, aux)` as `jax.vjp` does; aux is None without `has_aux`."""

        def of_parameters(parameters: Sequence[Any]) -> Any:
            values = iter(parameters)
            pairs = zip(leaves, self.is_differentiated, strict=True)
            return self.call([next(values) if is_own else leaf for leaf, is_own in pairs])

        pairs = zip(leaves, self.is_differentiated, strict=True)
        own = [leaf for leaf, is_own in pairs if is_own]
        if self.has_aux:
            return jax.vjp(of_parameters, own, has_aux=True)
        return (*jax.vjp(of_parameters, own), None)

    def value_and_gradient(self, leaves: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Returns `(value, gradients, aux)`; the gradients are those of the sum of its entries."""
        value, pullback, aux = self.vjp(leaves)
        (gradients,) = pullback(jax.tree.map(_unit_cotangent, value))
        return value, gradients, aux


def make_program(
    fn: Callable[..., Any],
    args: Sequence[Any],
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
) -> Program:
    """Makes the program `fn(*args)`; with `argnums` None, every argument is differentiated.

    Raises:
        TypeError: `fn` is not a function, or `argnums` is not made of integers.
        ValueError: `argnums` is out of range.
    """
    if not callable(fn):
        raise TypeError(f"`fn` must be a function; got {fn!r}.")
    positions = _positions(argnums, len(args))
    paths, treedef = jax.tree_util.tree_flatten_with_path(tuple(args))
    is_traced = [isinstance(leaf, _TRACED) for _, leaf in paths]

    def call(leaves: Sequence[Any]) -> Any:
        values = iter(leaves)
        pairs = zip(paths, is_traced, strict=True)
        given = [next(values) if t else x for (_, x), t in pairs]
        return jax.tree.map(jnp.asarray, fn(*jax.tree.unflatten(treedef, given)))

    kept = [pair for pair, traced in zip(paths, is_traced, strict=True) if traced]
    return Program(
        call=call,
        leaves=tuple(leaf for _, leaf in kept),
        names=tuple("args" + jax.tree_util.keystr(path) for path, _ in kept),
        is_differentiated=tuple(
            path[0].idx in positions and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
            for path, leaf in kept
        ),
        has_aux=has_aux,
    )


def make_differentiable(
    fn: Callable[..., Any],
    args: Sequence[Any],
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
) -> Program:
    """`make_program`, with a ValueError if the selected arguments hold no floating-point array."""
    program = make_program(fn, args, argnums, has_aux)
    if not any(program.is_differentiated):
        where = "`args`" if argnums is None else f"the arguments at `argnums` {argnums!r}"
        kinds = [jnp.result_type(leaf).name for leaf in program.leaves]
        raise ValueError(f"{where} must hold a floating-point array; got dtypes {kinds}.")
    return program


def array_bytes(array: Any) -> int:
    """Bytes of an array, a shape or a Python number; sub-byte types count packed, as in XLA."""
    dtype = jnp.result_type(array) if isinstance(array, float | complex) else array.dtype
    size = int(np.prod(np.shape(array), dtype=object))
    if jnp.issubdtype(dtype, jnp.integer):
        return -(-size * jnp.iinfo(dtype).bits // 8)
    if jnp.issubdtype(dtype, jnp.floating):
        return -(-size * jnp.finfo(dtype).bits // 8)
    return size * dtype.itemsize


def _positions(argnums: Any, num_args: int) -> set[int]:
    if argnums is None:
        return set(range(num_args))
    given = [argnums] if isinstance(argnums, Integral) else argnums
    is_listed = isinstance(given, Sequence) and not isinstance(given, str)
    if not is_listed or any(isinstance(i, bool) or not isinstance(i, Integral) for i in given):
        raise TypeError(
            f"`argnums` must be None, an integer or a sequence of integers; got {argnums!r}."
        )
    if any(not -num_args <= int(i) < num_args for i in given):
        raise ValueError(
            f"`argnums` must be positions of the {num_args} arguments; got {argnums!r}."
        )
    return {int(i) % num_args for i in given}


def _unit_cotangent(value: Any) -> Any:
    if jnp.issubdtype(value.dtype, jnp.inexact):
        return jnp.ones_like(value)
    return np.zeros(value.shape, jax.dtypes.float0)
