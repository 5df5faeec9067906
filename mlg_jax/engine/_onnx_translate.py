"""Translates a traced program into an ONNX graph, one operation of JAX after another.

Arrays that depend on neither images nor integer codes are computed on the host. Codes stay
integers: scaling them by numbers only changes the scale with which the graph decodes them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from mlg_jax.engine._onnx_graph import Codes, Graph, Value
from mlg_jax.engine._onnx_operations import (
    OPERATIONS,
    UnsupportedOperationError,
    is_static,
    on_host,
)

_NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sqrt": np.sqrt,
    "sub": np.subtract,
}
_IDENTITIES = (
    "copy",
    "copy_p",
    "name",
    "optimization_barrier",
    "stop_gradient",
    "sharding_constraint",
)


def translate(graph: Graph, program: ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
    """Adds the operations of a program to a graph, and returns the program's results."""
    constants = [on_host(constant) for constant in program.consts]
    return _run(graph, program.jaxpr, constants, inputs)


def _run(
    graph: Graph, jaxpr: Jaxpr, constants: Sequence[Value], inputs: Sequence[Value]
) -> list[Value]:
    values: dict[Any, Value] = {}
    values.update(zip(jaxpr.constvars, constants, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Value:
        return on_host(variable.val) if isinstance(variable, Literal) else values[variable]

    for equation in _needed(jaxpr):
        operands = [read(variable) for variable in equation.invars]
        results = _results(graph, equation, operands)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _needed(jaxpr: Jaxpr) -> list[Any]:
    """The equations on which the results depend, in order."""
    wanted = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(equation.outvars):
            kept.append(equation)
            wanted.update(v for v in equation.invars if not isinstance(v, Literal))
    return kept[::-1]


def _results(graph: Graph, equation: Any, operands: list[Value]) -> list[Value]:
    name, params = equation.primitive.name, equation.params
    if name == "max" and (pinned := _pinned(operands)) is not None:
        return [pinned]
    if name == "cond":
        if operands[0].host is None:
            raise UnsupportedOperationError(
                "ONNX export does not support a branch that depends on the image."
            )
        index = int(operands[0].host)
        branch = params["branches"][index]
        return translate(graph, branch, operands[1:])
    if name == "platform_index":
        return [on_host(np.int32(params["platforms"].index(None)))]  # the default
    if name in _IDENTITIES:
        return operands
    if (inner := _called(params)) is not None:
        return translate(graph, inner, operands)
    if (decoded := _with_codes(name, operands)) is not None:
        return [decoded]
    shapes = [variable.aval.shape for variable in equation.outvars]
    if all(operand.host is not None for operand in operands) and is_static(shapes):
        return _evaluated(equation, operands)
    if name not in OPERATIONS:
        raise UnsupportedOperationError(f"ONNX export does not support JAX's operation {name!r}.")
    return [OPERATIONS[name](graph, operands, equation)]


def _pinned(operands: list[Value]) -> Value | None:
    """X of `max(x, the smallest number)`, which keeps XLA from changing a product; else None."""
    for x, other in (operands, operands[::-1]):
        number = None if other.host is None else other.host
        if number is not None and number.size == 1 and number.dtype.kind == "f":
            return x if number.item() <= np.finfo(np.float32).min else None
    return None


def _called(params: Mapping[str, Any]) -> ClosedJaxpr | None:
    """The program that a call of a function runs: `jit`, custom derivatives, checkpoints."""
    for key in ("call_jaxpr", "fun_jaxpr", "jaxpr"):
        if isinstance(inner := params.get(key), ClosedJaxpr):
            return inner
        if isinstance(inner, Jaxpr):
            return ClosedJaxpr(inner, ())
    return None


def _evaluated(equation: Any, operands: list[Value]) -> list[Value]:
    """Results computed now, on the host; JAX would compile each operation for each shape."""
    arrays = [operand.host for operand in operands if operand.host is not None]
    in_numpy = _NUMPY.get(equation.primitive.name)
    if in_numpy is not None and equation.outvars[0].aval.dtype == np.float32:
        return [on_host(np.asarray(in_numpy(*arrays), np.float32))]
    shaped = [
        np.broadcast_to(array, variable.aval.shape)
        for array, variable in zip(arrays, equation.invars, strict=True)
    ]
    results = equation.primitive.bind(*shaped, **equation.params)
    return [on_host(r) for r in (results if equation.primitive.multiple_results else [results])]


def _with_codes(name: str, operands: list[Value]) -> Value | None:
    """A result that is again a scale and an offset of integer codes; None if it is not."""
    if name == "convert_element_type" and operands[0].host is not None:
        is_code = _are_codes(operands[0].host)
        return Value(operands[0].shape, codes=Codes(operands[0].host)) if is_code else None
    coded = [operand for operand in operands if operand.codes is not None]
    numbers = [float(o.host.item()) for o in operands if o.host is not None and o.host.size == 1]
    if name not in ("add", "sub", "mul", "div") or len(coded) != 1 or len(numbers) != 1:
        return None
    codes, number = coded[0].codes, numbers[0]
    assert codes is not None
    scale, offset = codes.scale, codes.offset
    if name == "add":
        offset += number
    elif name == "mul":
        scale, offset = scale * number, offset * number
    elif operands[0].codes is None:  # number - codes, number / codes
        if name == "div":
            return None
        scale, offset = -scale, number - offset
    elif name == "sub":
        offset -= number
    else:
        scale, offset = scale / number, offset / number
    return Value(coded[0].shape, codes=Codes(codes.integers, scale, offset))


def _are_codes(array: np.ndarray) -> bool:
    return array.dtype in (np.uint8, np.uint16) and array.ndim > 0
