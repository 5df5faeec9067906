"""A table of the content of a packed file: its layers, their tensors, bits and bytes."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from mlg_jax._errors import printable
from mlg_jax.export import PackedModel, PackedTensor

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One layer, including its running statistics."""

    name: str
    tensors: tuple[str, ...]  # name and shape, such as "kernel 3x3x16x32"
    bits: tuple[int, ...]  # per entry, for each tensor
    num_entries: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class FileSummary:
    """The layers of a packed model, without the values of its tensors."""

    layers: tuple[LayerSummary, ...]

    @property
    def total(self) -> LayerSummary:
        """The sum over the layers."""
        entries = sum(layer.num_entries for layer in self.layers)
        return LayerSummary("total", (), (), entries, sum(row.num_bytes for row in self.layers))

    def to_text(self) -> str:
        """A table for a terminal."""
        header = ("layer", "tensors", "bits", "entries", "bytes")
        rows = [header, *map(_cells, (*self.layers, self.total))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(_line(row, widths) for row in rows)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain JSON values, one mapping per layer."""
        return [dataclasses.asdict(layer) for layer in self.layers]


def summarize(packed: PackedModel) -> FileSummary:
    """The table of a packed model's layers, sorted by name."""
    layers = {t.path[1:-1] for t in packed.tensors if t.path[0] == "params"}

    def layer_of(tensor: PackedTensor) -> Path:
        """The innermost layer with parameters that contains a tensor."""
        path = tensor.path[1:-1]
        while path not in layers and path:
            path = path[:-1]
        return path or tensor.path[1:-1]

    parameters_first = sorted(packed.tensors, key=lambda t: (layer_of(t), t.path[0] != "params"))
    groups = itertools.groupby(parameters_first, layer_of)
    return FileSummary(tuple(_layer("/".join(path), tuple(group)) for path, group in groups))


def _layer(name: str, tensors: Sequence[PackedTensor]) -> LayerSummary:
    return LayerSummary(
        name,
        tuple(f"{t.path[-1]} {'x'.join(map(str, t.shape))}".rstrip() for t in tensors),
        tuple(8 * t.data.size // t.size if t.bits is None else t.bits for t in tensors),
        sum(t.size for t in tensors),
        sum(t.nbytes for t in tensors),
    )


def _cells(row: LayerSummary) -> tuple[str, ...]:
    bits = " ".join(map(str, row.bits))
    text = (row.name, ", ".join(row.tensors), bits)
    return (*map(printable, text), f"{row.num_entries:,}", f"{row.num_bytes:,}")


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    text = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)]
    numbers = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
    return "  ".join((*text, *numbers))
