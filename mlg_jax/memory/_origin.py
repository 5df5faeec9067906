"""Traces the outputs of a jaxpr back to an argument, a constant or the operation that made it."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core, source_info_util

# Primitives whose outputs are, one by one, the outputs of an inner jaxpr.
_WRAPPERS = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "scan", "shard_map"}
    | {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
)
_HERE = str(pathlib.Path(__file__).parent)
_TRANSFORMED = re.compile(r"\w+\(([^()]*)\)")  # "jvp(ResNet)" -> "ResNet"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a value comes from."""

    kind: str  # "argument" | "constant" | "activation"
    name: str  # path of an argument; otherwise module scope and operation
    operation: str  # checkpoint name or primitive; "" for an argument
    source: str  # "file.py:12:4 (function)"; "" if unknown
    identity: tuple[int, ...]  # equal for two outputs that are the same array
    is_named: bool = False  # whether `operation` is a `jax.ad_checkpoint.checkpoint_name`


def find_origins(program: core.ClosedJaxpr, argument_names: Sequence[str]) -> list[Origin]:
    """Finds the origin of each output of a program.

    Constants are closed-over arrays, literals, and values computed from literals alone, such as
    the zeros that the derivative of ReLU selects; compilers fold the latter.

    Args:
        program: the result of `jax.make_jaxpr`.
        argument_names: the names of the flat arguments.
    """
    jaxpr = program.jaxpr
    names = dict(zip(jaxpr.invars, argument_names, strict=True))
    producers, depending = _producers(jaxpr), _depending(jaxpr, jaxpr.invars)
    origins = []
    for output in jaxpr.outvars:
        variable, path, identity = _resolve(output, producers)
        if path:
            kind = "activation" if variable in depending else "constant"
            origins.append(_made_by(path, kind, identity))
        elif isinstance(variable, core.Literal):
            origins.append(Origin("constant", "literal", "literal", "", identity))
        elif variable in names:
            origins.append(Origin("argument", names[variable], "", "", identity))
        else:
            what = "closed-over array"
            origins.append(Origin("constant", what, what, "", identity))
    return origins


def _resolve(
    variable: Any, producers: Mapping[Any, tuple[Any, int]]
) -> tuple[Any, list[Any], tuple[int, ...]]:
    """Follows a variable back through equations that only pass it on.

    Returns:
        The variable reached, the nested equations that made it (outermost first), and its identity.
        The equations are empty if the variable is an input, a closed-over array or a literal. If
        the value passed through a `checkpoint_name`, that equation takes their place.
    """
    named: list[Any] = []
    while not isinstance(variable, core.Literal) and variable in producers:
        equation, index = producers[variable]
        if _is_identity(equation):
            if equation.primitive.name == "name":
                named = named or [equation]
            variable = equation.invars[0]
            continue
        inner = _inner_program(equation)
        if inner is None:
            return variable, named or [equation], (id(variable),)
        end, path, identity = _resolve(inner.outvars[index], _producers(inner))
        if isinstance(end, core.Literal):
            return end, [], (id(end),)
        if equation.primitive.name == "scan" or (not path and end not in inner.invars):
            return variable, named or [equation, *path], (id(variable),)
        if path:
            # Two calls may share one inner jaxpr: its variables alone do not distinguish them.
            return variable, named or [equation, *path], (id(equation), *identity)
        variable = equation.invars[inner.invars.index(end)]
    return variable, [], (id(variable),)


def _is_identity(equation: Any) -> bool:
    """Whether the equation returns its input in the same buffer."""
    if equation.primitive.name != "reduce_precision":
        return equation.primitive.name in ("name", "stop_gradient")
    # `jax.checkpoint` wraps the values that it saves in a rounding to the type they already have.
    own = jnp.finfo(equation.invars[0].aval.dtype)
    wanted = (equation.params["exponent_bits"], equation.params["mantissa_bits"])
    return wanted == (own.nexp, own.nmant)


def _depending(jaxpr: Any, inputs: Iterable[Any]) -> set[Any]:
    """The variables that depend on one of `inputs` or on a closed-over array."""
    found = {*inputs, *jaxpr.constvars}
    for equation in jaxpr.eqns:
        is_found = [not isinstance(v, core.Literal) and v in found for v in equation.invars]
        inner = _inner_program(equation)
        if inner is None or equation.primitive.name == "scan":  # the carry mixes a scan's inputs
            found.update(equation.outvars if any(is_found) else ())
            continue
        pairs = zip(inner.invars, is_found, strict=True)
        found_inside = _depending(inner, (v for v, is_one in pairs if is_one))
        outputs = zip(equation.outvars, inner.outvars, strict=True)
        found.update(
            outer
            for outer, own in outputs
            if not isinstance(own, core.Literal) and own in found_inside
        )
    return found


def _made_by(path: Sequence[Any], kind: str, identity: tuple[int, ...]) -> Origin:
    last, scope = path[-1], _scope(path)
    is_named = last.primitive.name == "name"
    operation = last.params["name"] if is_named else last.primitive.name
    name = f"{scope}/{operation}" if scope else operation
    return Origin(kind, name, operation, _source(path), identity, is_named)


def _inner_program(equation: Any) -> Any:
    if equation.primitive.name not in _WRAPPERS:
        return None
    closed = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    inner = closed.jaxpr if isinstance(closed, core.ClosedJaxpr) else closed
    sizes = (len(inner.invars), len(inner.outvars))
    return inner if sizes == (len(equation.invars), len(equation.outvars)) else None


def _producers(jaxpr: Any) -> dict[Any, tuple[Any, int]]:
    return {
        variable: (equation, index)
        for equation in jaxpr.eqns
        for index, variable in enumerate(equation.outvars)
    }


def _scope(path: Sequence[Any]) -> str:
    """Module names and `jax.named_scope`s, outermost first, without JAX's own, such as `jvp()`."""
    parts = []
    for equation in path:
        stack = str(equation.source_info.name_stack)
        while _TRANSFORMED.search(stack):
            stack = _TRANSFORMED.sub(r"\1", stack)
        parts += [part for part in stack.split("/") if part]
    return "/".join(parts)


def _source(path: Sequence[Any]) -> str:
    """The innermost known source line outside this package's `memory`, without its directory."""
    lines = [source_info_util.summarize(equation.source_info) for equation in path]
    known = [line for line in lines if line and not line.startswith(_HERE)]
    return re.sub(r"^.*[/\\]", "", known[-1]) if known else ""
