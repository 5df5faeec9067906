"""Evaluates a jaxpr while collecting its named values, or substituting saved ones for them."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
from jax.extend import core

from mlg_jax._types import Array


def run_named(
    closed: core.ClosedJaxpr,
    names: Collection[str],
    args: Sequence[Any],
    saved: Sequence[Any] | None = None,
) -> tuple[list[Any], list[Any]]:
    """Evaluates `closed` and collects the values that `checkpoint_name` marks with one of `names`.

    Args:
        closed: the function, with its constants.
        names: the `checkpoint_name`s to look for.
        args: the flat arguments.
        saved: the named values of an earlier evaluation, in its order. They replace the computed
            ones, whose computation then only serves to propagate the cotangents.

    Returns:
        The flat outputs and the named values. Names inside a nested `jax.jit` are found; names
        inside loops, conditionals and custom gradients are not.
    """
    found: list[Any] = []
    stack = list(reversed(saved)) if saved is not None else None

    def meet(value: Any) -> Any:
        found.append(value)
        return value if stack is None else _substitute(value, stack.pop())

    return _run(closed.jaxpr, closed.consts, args, frozenset(names), meet), found


def _run(
    jaxpr: Any,
    consts: Sequence[Any],
    args: Sequence[Any],
    names: frozenset[str],
    meet: Callable[[Any], Any],
) -> list[Any]:
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        inner = eqn.params.get("jaxpr")
        if eqn.primitive.name == "jit" and _has_name(inner.jaxpr, names):
            outputs = _run(inner.jaxpr, inner.consts, inputs, names, meet)
        else:
            params = eqn.primitive.get_bind_params(eqn.params)
            outputs = eqn.primitive.bind(*inputs, **params)
            if not eqn.primitive.multiple_results:
                outputs = [outputs]
            if eqn.primitive.name == "name" and eqn.params["name"] in names:
                outputs = [meet(outputs[0])]
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _has_name(jaxpr: Any, names: frozenset[str]) -> bool:
    return any(
        (e.primitive.name == "name" and e.params["name"] in names)
        or (e.primitive.name == "jit" and _has_name(e.params["jaxpr"].jaxpr, names))
        for e in jaxpr.eqns
    )


@jax.custom_vjp
def _substitute(computed: Array, saved: Array) -> Array:
    """Forward: `saved`. Backward: the cotangent goes to `computed` alone. Residuals: none."""
    return saved


_substitute.defvjp(lambda computed, saved: (saved, None), lambda _, cotangent: (cotangent, None))
