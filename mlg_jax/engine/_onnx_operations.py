"""Each of JAX's operations in ONNX.

Convolutions and pooling take channels first, as ONNX does; what lies between them is computed in
that layout too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlg_jax.engine._onnx_graph import Codes, Graph, Permutation, Value

CHANNELS_FIRST: Permutation = (0, 3, 1, 2)

_UNARY = {
    "abs": "Abs",
    "ceil": "Ceil",
    "cos": "Cos",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "logistic": "Sigmoid",
    "neg": "Neg",
    "not": "Not",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}
_BINARY = {
    "add": "Add",
    "add_any": "Add",
    "and": "And",
    "div": "Div",
    "eq": "Equal",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "or": "Or",
    "pow": "Pow",
    "sub": "Sub",
}
_REDUCTIONS = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin", "reduce_sum": "ReduceSum"}
_TO_EVEN = 1  # the `rounding_method` that ONNX's Round has


Operation = Callable[[Graph, Sequence[Value], Any], Value]  # operands, equation -> its result


class UnsupportedOperationError(ValueError):
    """The network computes something that this export cannot express in ONNX."""


def on_host(array: Any) -> Value:
    """An array that the export knows."""
    array = np.asarray(array)
    return Value(array.shape, host=array)


def is_static(shapes: Sequence[Any]) -> bool:
    """Whether no shape depends on the number of images."""
    return all(isinstance(size, int) for shape in shapes for size in shape)


def _stored(value: Value) -> Permutation:
    """The order of the axes in which a value is at hand without a transposition."""
    return value.order if value.name is not None else tuple(range(len(value.shape)))


def _elementwise(graph: Graph, operation: str, operands: Sequence[Value]) -> Value:
    """An operation on arrays of one shape, of which some may be numbers, or 1 along an axis."""
    rank = max(len(operand.shape) for operand in operands)
    computed = [o for o in operands if o.name is not None and len(o.shape) == rank]
    order = max((o.order for o in computed), default=tuple(range(rank)))
    names = [graph.name_of(o, order if len(o.shape) == rank else None) for o in operands]
    shapes = [o.shape for o in operands if len(o.shape) == rank]
    shape = tuple(
        next((n for n in sizes if str(n) != "1"), 1) for sizes in zip(*shapes, strict=True)
    )
    return Value(shape, name=graph.node(operation, names), order=order)


def _each(operation: str) -> Operation:
    return lambda graph, operands, equation: _elementwise(graph, operation, operands)


def _reduced(operation: str) -> Operation:
    def run(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
        value, axes = _whole(operands[0], equation.invars[0]), equation.params["axes"]
        order = _stored(value)
        places = sorted(order.index(axis) for axis in axes)
        inputs = [graph.name_of(value, order), graph.integers(places)]
        kept = [axis for axis in order if axis not in axes]
        result = graph.node(operation, inputs, keepdims=0)
        shape = equation.outvars[0].aval.shape
        return Value(shape, name=result, order=tuple(sorted(kept).index(axis) for axis in kept))

    return run


def _whole(value: Value, variable: Any) -> Value:
    """The value, which must not rely on broadcasting."""
    if tuple(map(str, value.shape)) == tuple(map(str, variable.aval.shape)):
        return value
    if value.host is not None and is_static([variable.aval.shape]):
        return on_host(np.broadcast_to(value.host, variable.aval.shape))
    raise UnsupportedOperationError(
        f"ONNX export does not support this use of an array of shape {variable.aval.shape} that is "
        f"repeated from shape {value.shape}."
    )


def _reshape(graph: Graph, value: Value, shape: Sequence[Any]) -> Value:
    if tuple(map(str, shape)) == tuple(map(str, value.shape)):
        return value
    if value.host is not None and is_static([shape]):
        return on_host(value.host.reshape(shape))
    if value.codes is not None:
        codes = value.codes
        return Value(
            tuple(shape), codes=Codes(codes.integers.reshape(shape), codes.scale, codes.offset)
        )
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    if sizes.count(-1) > 1:
        raise UnsupportedOperationError(f"ONNX export does not support a reshape to {shape}.")
    result = graph.node("Reshape", [graph.name_of(value), graph.integers(sizes)])
    return Value(tuple(shape), name=result, order=tuple(range(len(shape))))


def _broadcast(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    """Only gives the array its axes: operations repeat entries along an axis of length 1."""
    value, axes = operands[0], equation.params["broadcast_dimensions"]
    shape: list[Any] = [1] * len(equation.params["shape"])
    for axis, size in zip(axes, value.shape, strict=True):
        shape[axis] = size
    return value if tuple(shape) == value.shape else _reshape(graph, value, shape)


def _reshaped(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    value = _whole(operands[0], equation.invars[0])
    return _reshape(graph, value, equation.outvars[0].aval.shape)


def _transposed(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    """Changes no memory, only which axis is called which."""
    value, moved = operands[0], tuple(equation.params["permutation"])
    shape = tuple(value.shape[axis] for axis in moved)
    if value.codes is not None:
        codes = value.codes
        integers = codes.integers.transpose(moved)
        return Value(shape, codes=Codes(integers, codes.scale, codes.offset))
    return Value(shape, name=value.name, order=tuple(moved.index(axis) for axis in value.order))


def _converted(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    value, dtype = operands[0], np.dtype(equation.params["new_dtype"])
    if np.dtype(equation.invars[0].aval.dtype) == dtype:
        return value
    number = graph.onnx.helper.np_dtype_to_tensor_dtype(dtype)
    order = _stored(value)
    result = graph.node("Cast", [graph.name_of(value, order)], to=number)
    return Value(value.shape, name=result, order=order)


def _rounded(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    if int(equation.params["rounding_method"]) != _TO_EVEN:
        raise UnsupportedOperationError("ONNX export supports rounding to even numbers only.")
    return _elementwise(graph, "Round", operands)


def _complementary_error(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    one = on_host(np.ones((), equation.outvars[0].aval.dtype))
    return _elementwise(graph, "Sub", [one, _elementwise(graph, "Erf", operands)])


def _reciprocal_root(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    return _elementwise(graph, "Reciprocal", [_elementwise(graph, "Sqrt", operands)])


def _power(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    exponent = on_host(np.asarray(equation.params["y"], equation.outvars[0].aval.dtype))
    return _elementwise(graph, "Pow", [operands[0], exponent])


def _squared(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    return _elementwise(graph, "Mul", [operands[0], operands[0]])


def _selected(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    predicate, when_false, when_true = operands
    return _elementwise(graph, "Where", [predicate, when_true, when_false])


def _clamped(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    low, x, high = operands
    return _elementwise(graph, "Min", [_elementwise(graph, "Max", [x, low]), high])


def _concatenated(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    whole = [_whole(*pair) for pair in zip(operands, equation.invars, strict=True)]
    order = max(_stored(value) for value in whole)
    names = [graph.name_of(value, order) for value in whole]
    result = graph.node("Concat", names, axis=order.index(equation.params["dimension"]))
    return Value(equation.outvars[0].aval.shape, name=result, order=order)


def _sliced(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    value = _whole(operands[0], equation.invars[0])
    limits = list(
        zip(
            equation.params["start_indices"],
            equation.params["limit_indices"],
            value.shape,
            strict=True,
        )
    )
    steps = equation.params["strides"] or (1,) * len(limits)
    axes = [i for i, (a, b, n) in enumerate(limits) if str(b) != str(n) or a or steps[i] != 1]
    ends = [limits[i][1] if isinstance(limits[i][1], int) else 2**62 for i in axes]
    order = _stored(value)
    inputs = [
        graph.name_of(value, order),
        graph.integers([limits[i][0] for i in axes]),
        graph.integers(ends),
        graph.integers([order.index(i) for i in axes]),
        graph.integers([steps[i] for i in axes]),
    ]
    return Value(equation.outvars[0].aval.shape, name=graph.node("Slice", inputs), order=order)


def _padded(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    value, filling = _whole(operands[0], equation.invars[0]), operands[1]
    widths = equation.params["padding_config"]
    if any(interior for _, _, interior in widths):
        raise UnsupportedOperationError("ONNX export does not support padding between entries.")
    order = _stored(value)
    pads = [widths[axis][side] for side in (0, 1) for axis in order]
    inputs = [graph.name_of(value, order), graph.integers(pads), graph.name_of(filling)]
    return Value(equation.outvars[0].aval.shape, name=graph.node("Pad", inputs), order=order)


def _convolved(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    x, kernel = (_whole(*pair) for pair in zip(operands, equation.invars, strict=True))
    places = equation.params["dimension_numbers"]
    plain = equation.params["batch_group_count"] == 1 and not any(
        n != 1 for n in equation.params["lhs_dilation"]
    )
    if not plain or any(n < 0 for pair in equation.params["padding"] for n in pair):
        raise UnsupportedOperationError(
            "ONNX export does not support transposed convolutions or negative padding."
        )
    names = [graph.name_of(x, places.lhs_spec), graph.name_of(kernel, places.rhs_spec)]
    result = graph.node(
        "Conv",
        names,
        strides=equation.params["window_strides"],
        dilations=equation.params["rhs_dilation"],
        pads=_sides(equation.params["padding"]),
        group=equation.params["feature_group_count"],
    )
    return Value(equation.outvars[0].aval.shape, name=result, order=tuple(places.out_spec))


def _sides(padding: Sequence[tuple[int, int]]) -> list[int]:
    """JAX's pairs in ONNX's order: first all starts, then all ends."""
    return [pair[side] for side in (0, 1) for pair in padding]


def _pooled(operation: str) -> Operation:
    def run(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
        window, strides, padding = (
            equation.params[k] for k in ("window_dimensions", "window_strides", "padding")
        )
        dilations = (*equation.params["base_dilation"], *equation.params["window_dilation"])
        outer = [window[0], window[-1], strides[0], strides[-1], *padding[0], *padding[-1]]
        if len(window) != 4 or outer != [1] * 4 + [0] * 4 or any(n != 1 for n in dilations):
            raise UnsupportedOperationError(
                "ONNX export supports pooling over height and width only."
            )
        x = graph.name_of(_whole(operands[0], equation.invars[0]), CHANNELS_FIRST)
        options = {
            "kernel_shape": window[1:3],
            "strides": strides[1:3],
            "pads": _sides(padding[1:3]),
        }
        if operation == "AveragePool":
            options["count_include_pad"] = 1
        shape = equation.outvars[0].aval.shape
        pooled = Value(shape, name=graph.node(operation, [x], **options), order=CHANNELS_FIRST)
        if operation == "MaxPool":
            return pooled
        size = on_host(np.asarray(window[1] * window[2], equation.outvars[0].aval.dtype))
        return _elementwise(graph, "Mul", [pooled, size])

    return run


def _product(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    """`dot_general`: a 1 x 1 convolution of channels, a matrix product, or any other sum."""
    a, b = (_whole(*pair) for pair in zip(operands, equation.invars, strict=True))
    (of_a, of_b), (batch_a, batch_b) = equation.params["dimension_numbers"]
    shape = equation.outvars[0].aval.shape
    if not batch_a and len(of_a) == 1 and len(b.shape) == 2:
        if a.name is not None and a.order == CHANNELS_FIRST and of_a[0] == 3:
            return _pointwise(graph, a, b, of_b[0], shape)
        rows = tuple(axis for axis in range(len(a.shape)) if axis != of_a[0])
        order = (of_b[0], 1 - of_b[0])
        names = [graph.name_of(a, (*rows, of_a[0])), graph.name_of(b, order)]
        return Value(shape, name=graph.node("MatMul", names), order=tuple(range(len(shape))))
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    in_a = [next(letters) for _ in a.shape]
    in_b = [next(letters) for _ in b.shape]
    for axis_a, axis_b in zip((*of_a, *batch_a), (*of_b, *batch_b), strict=True):
        in_b[axis_b] = in_a[axis_a]
    free_a = [in_a[i] for i in range(len(in_a)) if i not in (*of_a, *batch_a)]
    free_b = [in_b[i] for i in range(len(in_b)) if i not in (*of_b, *batch_b)]
    out = "".join([in_a[i] for i in batch_a] + free_a + free_b)
    text = f"{''.join(in_a)},{''.join(in_b)}->{out}"
    result = graph.node("Einsum", [graph.name_of(a), graph.name_of(b)], equation=text)
    return Value(shape, name=result, order=tuple(range(len(shape))))


def _pointwise(graph: Graph, x: Value, matrix: Value, axis: int, shape: Any) -> Value:
    kernel = graph.name_of(matrix, (1 - axis, axis))
    sizes = [matrix.shape[1 - axis], matrix.shape[axis], 1, 1]
    kernel = graph.node("Reshape", [kernel, graph.integers(sizes)])
    result = graph.node("Conv", [graph.name_of(x, CHANNELS_FIRST), kernel])
    return Value(shape, name=result, order=CHANNELS_FIRST)


def _tiled(graph: Graph, operands: Sequence[Value], equation: Any) -> Value:
    value, order = _whole(operands[0], equation.invars[0]), _stored(operands[0])
    reps = (1,) * len(order) + tuple(equation.params["reps"])
    repeats = graph.integers([reps[-len(order) :][axis] for axis in order])
    result = graph.node("Tile", [graph.name_of(value, order), repeats])
    return Value(equation.outvars[0].aval.shape, name=result, order=order)


OPERATIONS: dict[str, Operation] = {
    **{name: _each(operation) for name, operation in (_UNARY | _BINARY).items()},
    **{name: _reduced(operation) for name, operation in _REDUCTIONS.items()},
    "broadcast_in_dim": _broadcast,
    "clamp": _clamped,
    "concatenate": _concatenated,
    "conv_general_dilated": _convolved,
    "convert_element_type": _converted,
    "dot_general": _product,
    "erfc": _complementary_error,
    "integer_pow": _power,
    "pad": _padded,
    "reduce_window_max": _pooled("MaxPool"),
    "reduce_window_sum": _pooled("AveragePool"),
    "reshape": _reshaped,
    "round": _rounded,
    "rsqrt": _reciprocal_root,
    "select_n": _selected,
    "slice": _sliced,
    "square": _squared,
    "squeeze": _reshaped,
    "tile": _tiled,
    "transpose": _transposed,
}
