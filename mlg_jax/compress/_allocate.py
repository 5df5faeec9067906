"""Shapes and widths of every layer's factors under one budget of bytes."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlg_jax._checks import check_instance, check_real
from mlg_jax._tables import table
from mlg_jax.compress._sensitivity import Candidate, Sensitivity
from mlg_jax.kernels import GenerationSpec

_BITS_PER_KB = 8 * 1024
_NUM_CELLS = 50_000  # of the budget's table; its resolution is the budget over this


@dataclasses.dataclass(frozen=True)
class Allocation:
    """What was chosen: `generation` and `weight_bits` are arguments of `create_model`."""

    choices: dict[str, Candidate]  # by layer
    weight_bits: int | None
    num_bits: int  # of the whole model, as `size_report` counts them

    @property
    def generation(self) -> dict[str, GenerationSpec | None]:
        """By layer name."""
        return {name: choice.generation for name, choice in self.choices.items()}

    @property
    def kb(self) -> float:
        """Size of the whole model in KB of 1024 bytes, as `size_report` counts it."""
        return self.num_bits / _BITS_PER_KB

    @property
    def kl(self) -> float:
        """The sum of the layers' measured divergences, nats an image."""
        return sum(choice.kl for choice in self.choices.values())

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Plain values by layer; `setting` is Bi-Bo-qb-qu-qv."""
        return [
            {
                "layer": name,
                "setting": _words(choice.generation, self.weight_bits),
                "kb": choice.num_bits / _BITS_PER_KB,
                "error": choice.error,
                "kl": choice.kl,
            }
            for name, choice in self.choices.items()
        ]

    def to_markdown(self) -> str:
        """A table, one row a layer."""
        formats = {"layer": "", "setting": "", "kb": ".2f", "error": ".3f", "kl": ".4f"}
        rows = ([format(row[name], spec) for name, spec in formats.items()] for row in self.rows)
        return table(("layer", "Bi-Bo-qb-qu-qv", "KB", "error", "KL"), rows, "llr")


def allocate(sensitivity: Sensitivity, *, target_kb: float) -> Allocation:
    """Chooses for every layer such that the sum of divergences is least within the budget.

    A multiple-choice knapsack, solved by dynamic programming over the bits above the smallest
    model; divergences of several layers are taken to add up.

    Args:
        sensitivity: from `measure_sensitivity`.
        target_kb: the whole model's size may be at most this, in KB of 1024 bytes as `size_report`
            counts them (norms and classifier included, running statistics not).

    Returns:
        The choice of every layer.

    Raises:
        TypeError, ValueError: a target that is no number, or smaller than the smallest model.

    Example:
        >>> sensitivity = measure_sensitivity(model, variables, images)  # doctest: +SKIP
        >>> allocation = allocate(sensitivity, target_kb=350.0)  # doctest: +SKIP
        >>> create_model("resnet18", num_classes=10, generation=allocation.generation,
        ...              weight_bits=allocation.weight_bits)  # doctest: +SKIP
    """
    check_instance("sensitivity", sensitivity, Sensitivity)
    rows = [layer.choices for layer in sensitivity.layers]
    smallest = sensitivity.fixed_bits + sum(min(c.num_bits for c in row) for row in rows)
    budget = budget_bits(target_kb, smallest)
    picks = knapsack(
        [[c.num_bits for c in row] for row in rows],
        [[c.kl for c in row] for row in rows],
        budget - sensitivity.fixed_bits,
    )
    names = (layer.name for layer in sensitivity.layers)
    chosen = {n: row[i] for n, row, i in zip(names, rows, picks, strict=True)}
    num_bits = sensitivity.fixed_bits + sum(c.num_bits for c in chosen.values())
    return Allocation(chosen, sensitivity.weight_bits, num_bits)


def budget_bits(target_kb: float, smallest: int) -> int:
    """The target in bits; raises unless it is a number that `smallest` bits fit into."""
    check_real("target_kb", target_kb, 0.0, exclusive_minimum=True)
    budget = math.floor(target_kb * _BITS_PER_KB)
    if budget < smallest:
        reachable = math.ceil(smallest / _BITS_PER_KB * 100) / 100
        raise ValueError(
            f"`target_kb` must be at least {reachable}, the smallest reachable with these choices; "
            f"got {target_kb!r}."
        )
    return budget


def knapsack(
    sizes: Sequence[Sequence[int]],
    divergences: Sequence[Sequence[float]],
    budget: int,
    *,
    num_cells: int = _NUM_CELLS,
) -> list[int]:
    """One index a row: the least sum of divergences whose sum of sizes is at most `budget`.

    Exact while the budget exceeds the smallest sum by at most `num_cells`; beyond, what a choice
    adds to its row's smallest is rounded up to `1 / num_cells` of that, so the budget is kept.
    """
    smallest = [min(row) for row in sizes]
    spare = budget - sum(smallest)
    cell = max(1, -(-spare // num_cells))
    best = np.zeros(spare // cell + 1)  # the least sum of the rows so far within so many cells
    tables = []
    for row, row_divergences, base in zip(sizes, divergences, smallest, strict=True):
        extras = [-(-(size - base) // cell) for size in row]
        table = np.full((len(row), len(best)), np.inf)
        for i, (extra, kl) in enumerate(zip(extras, row_divergences, strict=True)):
            if extra < len(best):
                table[i, extra:] = best[: len(best) - extra] + kl
        tables.append((extras, np.argmin(table, axis=0)))
        best = np.min(table, axis=0)
    picks: list[int] = []
    left = len(best) - 1
    for extras, pick in reversed(tables):
        picks.append(int(pick[left]))
        left -= extras[picks[-1]]
    return picks[::-1]


def _words(spec: GenerationSpec | None, weight_bits: int | None) -> str:
    """The paper's notation; a factor that is not there has no bits."""
    if spec is None:
        return f"ordinary, {32 if weight_bits is None else weight_bits} bits"
    return spec.notation(unquantized="·")
