"""Running statistics of activation densities: mean, deviation, extremes and histogram."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlg_jax._tables import table

NUM_BINS = 20  # of a histogram over [0, 1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DensityStats:
    """Running statistics of one density per name; a pytree that `jax.lax.scan` can carry.

    Squared deviations from the mean are accumulated, not squares: in float32 the difference of two
    large sums would lose the deviation of a density that hardly changes.
    """

    count: Array  # [], int32: number of batches
    mean: Array  # [names], float32
    squared_deviation: Array  # [names], float32: sum over batches of (density - mean)^2
    minimum: Array  # [names], float32
    maximum: Array  # [names], float32
    histogram: Array  # [names, NUM_BINS], int32: batches per density bin of width 1 / NUM_BINS
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class DensityRow:
    """Density statistics of one name, or of all names of one kind pooled."""

    name: str  # the name or the kind
    mean: float
    std: float  # population standard deviation, over batches and pooled names
    minimum: float
    maximum: float
    num_batches: int
    histogram: tuple[int, ...]  # batches per density bin, summed over pooled names


def init_densities(names: Iterable[str]) -> DensityStats:
    """Empty statistics.

    Args:
        names: names of the densities, in the order of the rows of a summary.

    Raises:
        ValueError: `names` is empty or has duplicates.
    """
    names = tuple(names)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"`names` must be one or more different names; got {names}.")
    zeros = jnp.zeros(len(names), jnp.float32)
    return DensityStats(
        count=jnp.zeros((), jnp.int32),
        mean=zeros,
        squared_deviation=zeros,
        minimum=zeros + jnp.inf,
        maximum=zeros - jnp.inf,
        histogram=jnp.zeros((len(names), NUM_BINS), jnp.int32),
        names=names,
    )


def update_densities(stats: DensityStats, densities: Mapping[str, Array]) -> DensityStats:
    """Adds one batch to the statistics by Welford's update; pure, can be compiled.

    Args:
        stats: statistics of the earlier batches.
        densities: a scalar in [0, 1] for each of `stats.names`.

    Raises:
        ValueError: the names of `densities` are not `stats.names`.

    Examples:
        >>> from mlg_jax.memory import init_densities, summarize_densities, update_densities
        >>> stats = init_densities(["conv1"])
        >>> for density in (0.25, 0.75):
        ...     stats = update_densities(stats, {"conv1": density})
        >>> [row] = summarize_densities(stats)
        >>> row.mean, row.std, row.num_batches
        (0.5, 0.25, 2)
    """
    if set(densities) != set(stats.names):
        raise ValueError(
            f"`densities` must have the names {sorted(stats.names)}; got {sorted(densities)}."
        )
    new = jnp.stack([jnp.asarray(densities[name], jnp.float32) for name in stats.names])
    count = stats.count + 1
    difference = new - stats.mean
    mean = stats.mean + difference / count
    bins = jnp.minimum(jnp.floor(new * NUM_BINS), NUM_BINS - 1)  # NaN falls into no bin
    return DensityStats(
        count=count,
        mean=mean,
        squared_deviation=stats.squared_deviation + difference * (new - mean),
        minimum=jnp.minimum(stats.minimum, new),
        maximum=jnp.maximum(stats.maximum, new),
        histogram=stats.histogram + (bins[:, None] == jnp.arange(NUM_BINS)),
        names=stats.names,
    )


def summarize_densities(
    stats: DensityStats, kinds: Mapping[str, str] | None = None
) -> tuple[DensityRow, ...]:
    """Summarises the statistics: one row per name or, with `kinds`, one row per kind.

    Args:
        stats: statistics of at least one batch.
        kinds: the kind of each name, such as `{"stage1/conv1": "conv"}`; None for a row per name.

    Returns:
        The rows, in the order of the names, or of the first name of each kind.

    Raises:
        ValueError: `stats` is empty, or `kinds` lacks a name.
    """
    count = int(stats.count)
    if count == 0:
        raise ValueError("`stats` must hold at least one batch; got none.")
    kinds = {name: name for name in stats.names} if kinds is None else kinds
    missing = sorted(set(stats.names) - set(kinds))
    if missing:
        raise ValueError(f"`kinds` must have a kind for every name; got none for {missing}.")
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(stats.names):
        groups.setdefault(kinds[name], []).append(index)
    return tuple(_row(kind, stats, count, members) for kind, members in groups.items())


def densities_to_markdown(rows: Sequence[DensityRow]) -> str:
    """A table, one row each."""
    cells = (
        (
            row.name,
            *(f"{value:.4f}" for value in (row.mean, row.std, row.minimum, row.maximum)),
            f"{row.num_batches:,}",
        )
        for row in rows
    )
    return table(("name", "mean", "std", "min", "max", "batches"), cells)


def _row(name: str, stats: DensityStats, count: int, members: Sequence[int]) -> DensityRow:
    """Pools the members; the variance is that within members plus that of their means."""
    means = np.asarray(stats.mean, np.float64)[members]
    within = np.asarray(stats.squared_deviation, np.float64)[members]
    variance = np.mean(within / count + (means - means.mean()) ** 2)
    return DensityRow(
        name=name,
        mean=float(means.mean()),
        std=float(np.sqrt(variance)),
        minimum=float(np.asarray(stats.minimum)[members].min()),
        maximum=float(np.asarray(stats.maximum)[members].max()),
        num_batches=count,
        histogram=tuple(np.asarray(stats.histogram)[members].sum(axis=0).tolist()),
    )
