"""The exact size of a model: parameters, bits and ratios, per layer and in total."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from mlg_jax._checks import check_instance
from mlg_jax._tables import table
from mlg_jax.kernels import LayerRecord
from mlg_jax.layers import layer_params, layer_records

BITS_PER_KB = 8 * 1024


@dataclasses.dataclass(frozen=True)
class LayerSize:
    """One row of a size report."""

    name: str
    kind: str
    num_params: int
    num_bits: int
    num_dense_params: int  # of the same layer with an ordinary kernel

    @property
    def kb(self) -> float:
        """Stored size in KB of 1024 bytes."""
        return self.num_bits / BITS_PER_KB

    @property
    def dense_kb(self) -> float:
        """Size of the ordinary layer in KB, at 32 bits per entry."""
        return self.num_dense_params * 32 / BITS_PER_KB

    @property
    def ratio(self) -> float:
        """Stored size relative to the ordinary layer's."""
        return self.kb / self.dense_kb


@dataclasses.dataclass(frozen=True)
class SizeReport:
    """Sizes per layer and in total. Running statistics are not counted, as published."""

    layers: tuple[LayerSize, ...]

    @property
    def total(self) -> LayerSize:
        """The sum of all layers."""
        sums = (
            sum(getattr(layer, field) for layer in self.layers)
            for field in ("num_params", "num_bits", "num_dense_params")
        )
        return LayerSize("total", "", *sums)

    @property
    def num_params(self) -> int:
        """Number of stored parameters."""
        return self.total.num_params

    @property
    def num_dense_params(self) -> int:
        """Number of parameters of the ordinary model."""
        return self.total.num_dense_params

    @property
    def kb(self) -> float:
        """Stored size in KB of 1024 bytes."""
        return self.total.kb

    @property
    def dense_kb(self) -> float:
        """Size of the ordinary model in KB."""
        return self.total.dense_kb

    @property
    def ratio(self) -> float:
        """Stored size relative to the ordinary model's."""
        return self.total.ratio

    def to_markdown(self) -> str:
        """A table with one row per layer and the total."""
        names = ("layer", "kind", "parameters", "KB", "dense KB", "ratio")
        rows = (
            (
                row.name,
                row.kind,
                f"{row.num_params:,}",
                f"{row.kb:,.2f}",
                f"{row.dense_kb:,.2f}",
                f"{row.ratio:.4f}",
            )
            for row in (*self.layers, self.total)
        )
        return table(names, rows, "llr")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        rows = [
            dataclasses.asdict(row) | {"kb": row.kb, "dense_kb": row.dense_kb, "ratio": row.ratio}
            for row in (*self.layers, self.total)
        ]
        return {"layers": rows[:-1], "total": rows[-1]}


def size_report(
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    input_shape: Sequence[int] | None = None,
) -> SizeReport:
    """Counts the stored bits of a model: `|B| qb + |U| qu + |V| qv` per generated layer.

    Entries that are not quantised count 32 bits each; norms count scale and bias, but not their
    running statistics. 1 KB is 1024 bytes.

    Args:
        model: a model of this package, or any Linen module built from its layers.
        variables: from `model.init` or training; shapes alone suffice.
        input_shape: `[N, H, W, C]` to call the model with; None takes `model.input_shape`.

    Returns:
        Sizes per layer and in total, and those of the same model with ordinary kernels.

    Raises:
        ValueError: `variables` do not fit the model, or hold parameters that no layer declares.

    Reference: https://arxiv.org/abs/2108.11430, section 4.
    """
    check_instance("model", model, nn.Module)
    check_instance("variables", variables, Mapping)
    records = [record for record in layer_records(model, input_shape) if record.factors]
    _check_variables(records, variables)
    return SizeReport(
        tuple(
            LayerSize(r.name, r.kind, r.num_params, r.num_bits, r.num_dense_params) for r in records
        )
    )


def _check_variables(records: Sequence[LayerRecord], variables: Mapping[str, Any]) -> None:
    if "params" not in variables:
        raise ValueError(f"`variables` must hold 'params'; got {sorted(variables)}.")
    params = variables["params"]
    for record in records:
        try:
            arrays = layer_params(params, record)
        except KeyError as error:
            raise ValueError(
                f"`variables` must hold the parameters of layer {record.name}; {error} is missing."
            ) from None
        for factor in record.factors:
            if arrays[factor.name].shape != factor.shape:
                raise ValueError(
                    f"`variables` must hold {record.name}/{factor.name} with shape "
                    f"{factor.shape}; got {arrays[factor.name].shape}."
                )
    declared = sum(len(record.factors) for record in records)
    found = len(jax.tree.leaves(params))
    if found != declared:
        raise ValueError(
            f"`variables` must hold the {declared} arrays that the layers declare; got {found}."
        )
