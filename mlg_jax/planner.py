"""The fastest policy whose compiled program fits a budget."""

from collections.abc import Callable, Sequence

from mlg_jax._checks import check_real

# From fast to slow: the first recomputes what is cheap, the last everything and packs twice.
CANDIDATES = ("none", "convs", "blocks", "bitmap_blocks", "bitmap_units")

MIB = 2**20


def plan_policy(
    temporary_bytes: Callable[[str], int],
    *,
    budget_bytes: float,
    candidates: Sequence[str] = CANDIDATES,
) -> tuple[str, dict[str, int]]:
    """The first of `candidates` that fits; all of them are exact.

    Args:
        temporary_bytes: of the compiled training step under a preset.
        budget_bytes: > 0; what the program may use besides its arguments and results.
        candidates: presets, from fast to slow.

    Returns:
        The preset's name, and the bytes of all that were compiled.

    Raises:
        ValueError: a budget below what any candidate reaches; names the smallest reachable.
    """
    check_real("budget_bytes", budget_bytes, 0.0, exclusive_minimum=True)
    found: dict[str, int] = {}
    for name in candidates:
        found[name] = temporary_bytes(name)
        if found[name] <= budget_bytes:
            return name, found
    best = min(found, key=lambda name: found[name])
    raise ValueError(
        f"`budget_mib` must be at least {found[best] / MIB:.1f}, what the exact policy {best!r} "
        f"reaches; got {budget_bytes / MIB:.1f}."
    )
