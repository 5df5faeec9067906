"""Chooses the fastest checkpointing preset whose compiled program fits a memory budget."""

from collections.abc import Callable, Sequence

from mlg_jax._checks import check_real

# Exact presets, from no recomputation (fast) to recomputing and packing twice (slow).
CANDIDATES = ("none", "convs", "blocks", "bitmap_blocks", "bitmap_units")

MIB = 2**20


def plan_policy(
    temporary_bytes: Callable[[str], int],
    *,
    budget_bytes: float,
    candidates: Sequence[str] = CANDIDATES,
) -> tuple[str, dict[str, int]]:
    """Returns the first of `candidates` that fits the budget.

    Args:
        temporary_bytes: compiles the training step under a preset and returns the bytes of its
            temporaries.
        budget_bytes: largest allowed number of these bytes, > 0.
        candidates: exact presets, from fast to slow.

    Returns:
        The name of the preset, and the bytes of every preset that was compiled.

    Raises:
        TypeError: `budget_bytes` is not a number.
        ValueError: `budget_bytes` is not positive, or no candidate fits; the message states the
            smallest sufficient budget.
    """
    check_real("budget_bytes", budget_bytes, 0.0, exclusive_minimum=True)
    found: dict[str, int] = {}
    for name in candidates:
        found[name] = temporary_bytes(name)
        if found[name] <= budget_bytes:
            return name, found
    best = min(found, key=lambda name: found[name])
    raise ValueError(
        f"`budget_mib` must be at least {found[best] / MIB:.1f}, which the smallest exact policy, "
        f"{best!r}, needs; got {budget_bytes / MIB:.1f}."
    )
