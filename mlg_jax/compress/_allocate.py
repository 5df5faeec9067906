"""Shapes and widths of every layer's factors under one size budget."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlg_jax._checks import check_instance, check_real
from mlg_jax._tables import table
from mlg_jax.compress._sensitivity import Candidate, Sensitivity
from mlg_jax.kernels import GenerationSpec

BITS_PER_KB = 8 * 1024
_NUM_CELLS = 50_000  # in the table of `knapsack`; with more cells, sizes are rounded less


@dataclasses.dataclass(frozen=True)
class Allocation:
    """The chosen kernels; `generation` and `weight_bits` are arguments of `create_model`."""

    choices: dict[str, Candidate]  # by layer
    weight_bits: int | None
    num_bits: int  # of the whole model, as `size_report` counts them

    @property
    def generation(self) -> dict[str, GenerationSpec | None]:
        """The chosen specs by layer name; None keeps a kernel ordinary."""
        return {name: choice.generation for name, choice in self.choices.items()}

    @property
    def kb(self) -> float:
        """Size of the whole model in KB of 1024 bytes, as `size_report` counts it."""
        return self.num_bits / BITS_PER_KB

    @property
    def kl(self) -> float:
        """The sum of the divergences of the chosen kernels, in nats per image."""
        return sum(choice.kl for choice in self.choices.values())

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Plain values by layer; `setting` is Bi-Bo-qb-qu-qv."""
        return [
            {
                "layer": name,
                "setting": _words(choice.generation, self.weight_bits),
                "kb": choice.num_bits / BITS_PER_KB,
                "error": choice.error,
                "kl": choice.kl,
            }
            for name, choice in self.choices.items()
        ]

    def to_markdown(self) -> str:
        """A table with one row per layer."""
        formats = {"layer": "", "setting": "", "kb": ".2f", "error": ".3f", "kl": ".4f"}
        rows = ([format(row[name], spec) for name, spec in formats.items()] for row in self.rows)
        return table(("layer", "Bi-Bo-qb-qu-qv", "KB", "error", "KL"), rows, "llr")


def allocate(sensitivity: Sensitivity, *, target_kb: float) -> Allocation:
    """Chooses a kernel for every layer, minimising the sum of divergences within the budget.

    A multiple-choice knapsack, solved by dynamic programming over the bits above the smallest
    model; it assumes that the divergences of several layers add up.

    Args:
        sensitivity: from `measure_sensitivity`.
        target_kb: largest size of the whole model in KB of 1024 bytes, as `size_report` counts it
            (norms and classifier included, running statistics excluded).

    Returns:
        The choice for every layer.

    Raises:
        TypeError, ValueError: `target_kb` is not a number, or below the size of the smallest model.

    Examples:
        >>> sensitivity = measure_sensitivity(model, variables, images)  # doctest: +SKIP
        >>> allocation = allocate(sensitivity, target_kb=350.0)  # doctest: +SKIP
        >>> create_model("resnet18", num_classes=10, generation=allocation.generation,
        ...              weight_bits=allocation.weight_bits)  # doctest: +SKIP
    """
    check_instance("sensitivity", sensitivity, Sensitivity)
    rows = [layer.choices for layer in sensitivity.layers]
    budget = budget_bits(target_kb, sensitivity.smallest_bits)
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
    """`target_kb` in bits; raises unless it is a number and at least `smallest` bits."""
    check_real("target_kb", target_kb, 0.0, exclusive_minimum=True)
    budget = math.floor(target_kb * BITS_PER_KB)
    if budget < smallest:
        reachable = math.ceil(smallest / BITS_PER_KB * 100) / 100
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
    """One index per row, minimising the sum of divergences within a sum of sizes of `budget`.

    Exact if the budget exceeds the smallest sum of sizes by at most `num_cells`. Otherwise each
    size's excess over the smallest of its row is rounded up to whole cells, `num_cells` of which
    cover the spare budget, so that the budget is never exceeded.
    """
    smallest = [min(row) for row in sizes]
    spare = budget - sum(smallest)
    cell = max(1, -(-spare // num_cells))
    best = np.zeros(spare // cell + 1)  # by number of cells: the least sum of the rows so far
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
    """The paper's notation, with a dot for the width of a factor that is absent."""
    if spec is None:
        return f"ordinary, {32 if weight_bits is None else weight_bits} bits"
    return spec.notation(unquantized="·")
