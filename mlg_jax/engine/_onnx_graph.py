"""An ONNX graph under construction: nodes, stored arrays, and values in either memory layout."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

OPSET = 21  # the first whose DequantizeLinear takes 4-bit codes
_IR_VERSION = 10  # of that opset
_DTYPES = {
    "float32": "FLOAT",
    "float16": "FLOAT16",
    "bfloat16": "BFLOAT16",
    "float64": "DOUBLE",
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
}

Permutation = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Codes:
    """Integers on the host that stand for `scale * codes + offset`."""

    integers: np.ndarray  # uint8 or uint16
    scale: float = 1.0
    offset: float = 0.0


@dataclasses.dataclass(frozen=True)
class Value:
    """An array of the traced program.

    Exactly one of `host`, `codes` and `name` is set. A tensor of the graph may be stored with other
    axes first: its axis i is the array's axis `order[i]`. Axes of length 1 stand for any length.
    """

    shape: tuple[Any, ...]  # of the array; a symbolic dimension is the number of images
    host: np.ndarray | None = None
    codes: Codes | None = None
    name: str | None = None
    order: Permutation = ()


class Graph:
    """Collects nodes and arrays; equal arrays are stored once."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.arrays: list[Any] = []
        self._stored: dict[Any, str] = {}
        self._transposed: dict[tuple[str, Permutation], str] = {}
        self._numbers = itertools.count()

    def node(self, operation: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds an operation with one result, and returns the result's name."""
        result = f"v{next(self._numbers)}"
        self.nodes.append(self.onnx.helper.make_node(operation, inputs, [result], **attributes))
        return result

    def tensor(self, array: np.ndarray) -> str:
        """The name of a stored array."""
        return self._store(str(array.dtype), array, _DTYPES[str(array.dtype)], array.tobytes())

    def integers(self, values: Sequence[int]) -> str:
        """The name of a stored list of int64, as axes and shapes are given."""
        return self.tensor(np.asarray(values, np.int64))

    def name_of(self, value: Value, order: Permutation | None = None) -> str:
        """The tensor of a value, with its axes in this order (the array's own order if None)."""
        order = tuple(range(len(value.shape))) if order is None else order
        if value.host is not None:
            return self.tensor(np.ascontiguousarray(np.transpose(value.host, order)))
        if value.codes is not None:
            return self._dequantized(value.codes, order)
        assert value.name is not None
        steps = tuple(value.order.index(axis) for axis in order)
        if steps == tuple(range(len(steps))):
            return value.name
        if (value.name, steps) not in self._transposed:
            moved = self.node("Transpose", [value.name], perm=steps)
            self._transposed[value.name, steps] = moved
        return self._transposed[value.name, steps]

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any], **strings: str) -> Any:
        """The finished, checked `ModelProto`; `strings` become its metadata."""
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, "mlg_jax", inputs, outputs, self.arrays)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(
            graph, opset_imports=[opset], ir_version=_IR_VERSION, producer_name="mlg_jax"
        )
        helper.set_model_props(model, strings)
        self.onnx.checker.check_model(model, full_check=True)
        return model

    def _dequantized(self, codes: Codes, order: Permutation) -> str:
        """`scale * codes + offset`, in one operation where an integer zero point allows it."""
        factor, zero = _zero_point(codes)
        integers = np.transpose(codes.integers, order) * codes.integers.dtype.type(factor)
        dtype, data = _smallest(integers)
        stored = self._store(f"{dtype} codes", integers, dtype, data)
        scale = self.tensor(np.asarray(codes.scale / factor, np.float32))
        inputs = [stored, scale]
        if zero:
            point = np.asarray(zero, integers.dtype)
            inputs.append(self._store(f"{dtype} zero", point, dtype, _bytes(point, dtype)))
        values = self.node("DequantizeLinear", inputs)
        if zero is not None:
            return values
        return self.node("Add", [values, self.tensor(np.asarray(codes.offset, np.float32))])

    def _store(self, kind: str, array: np.ndarray, dtype: str, data: bytes) -> str:
        key = (kind, array.shape, data)
        if key not in self._stored:
            name = self._stored[key] = f"w{len(self._stored)}"
            number = getattr(self.onnx.TensorProto, dtype)
            self.arrays.append(
                self.onnx.helper.make_tensor(name, number, array.shape, data, raw=True)
            )
        return self._stored[key]


def _zero_point(codes: Codes) -> tuple[int, int | None]:
    """A factor of 1 or 2 on the codes for which the zero point is an integer, and that integer.

    Grids that are symmetric about 0 have their zero half way between two codes. The zero point is
    None if none fits: then the offset is added.
    """
    largest = int(codes.integers.max(initial=0))
    for factor in (1, 2):
        zero = -codes.offset / codes.scale * factor
        limit = _limit(factor * largest)
        if limit == _limit(largest) and abs(zero - round(zero)) < 1e-4 and 0 <= zero <= limit:
            return factor, round(zero)
    return 1, None


def _limit(largest: int) -> int:
    """The largest integer of the smallest unsigned type that holds `largest`."""
    return next((n for n in (15, 255, 65535) if largest <= n), largest)


def _smallest(integers: np.ndarray) -> tuple[str, bytes]:
    """The narrowest unsigned type of these codes, and their bytes."""
    limit = _limit(int(integers.max(initial=0)))
    dtype = {15: "UINT4", 255: "UINT8"}.get(limit, "UINT16")
    return dtype, _bytes(integers, dtype)


def _bytes(integers: np.ndarray, dtype: str) -> bytes:
    if dtype != "UINT4":
        return integers.astype("<u1" if dtype == "UINT8" else "<u2").tobytes()
    flat = integers.astype(np.uint8).ravel()
    flat = np.concatenate([flat, np.zeros(flat.size % 2, np.uint8)])
    return (flat[::2] | flat[1::2] << 4).tobytes()
