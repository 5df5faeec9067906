"""Figures of training curves, sizes, memory and speed, written to image files."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mlg_jax._atomic import write_atomically

_MIB = 2**20


def plot_curves(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Plots loss and accuracy against the step for each run.

    Args:
        path: the file to write.
        runs: `{name: lines of its metrics.jsonl}`.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    loss_axis, accuracy_axis = figure.subplots(1, 2)
    for name, lines in runs.items():
        for kind, style in (("train", "-"), ("eval", "o-")):
            rows = [line for line in lines if line["kind"] == kind and "loss" in line]
            steps = [row["step"] for row in rows]
            label = name if kind == "train" else f"{name}, validation"
            loss_axis.plot(steps, [r["loss"] for r in rows], style, ms=3, label=label)
            accuracy_axis.plot(steps, [r.get("accuracy") for r in rows], style, ms=3, label=label)
    loss_axis.set(xlabel="step", ylabel="loss", yscale="log")
    accuracy_axis.set(xlabel="step", ylabel="accuracy")
    accuracy_axis.legend(fontsize=7)
    _save(figure, path)


def plot_sizes(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Plots the stored size of each layer beside its size as dense float32 parameters.

    Args:
        path: the file to write.
        rows: the layers of `SizeReport.to_dict()`.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.bar(range(len(rows)), [row["dense_kb"] for row in rows], label="ordinary")
    axis.bar(range(len(rows)), [row["kb"] for row in rows], label="stored")
    axis.set_xticks(range(len(rows)), [row["name"] for row in rows], rotation=90, fontsize=6)
    axis.set(yscale="log", ylabel="KB")
    axis.legend()
    _save(figure, path)


def plot_residuals(path: Path, reports: Mapping[str, Mapping[str, int]]) -> None:
    """Plots residual bytes as stacked bars, one bar per report.

    Args:
        path: the file to write.
        reports: `{name: bytes by category}`, where categories are the kinds or operations of
            `MemoryReport.bytes_by_kind` or `bytes_by_operation`; each has one colour in all bars.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    names = list(reports)
    floor = [0.0] * len(names)
    for category in dict.fromkeys(c for sizes in reports.values() for c in sizes):
        heights = [sizes.get(category, 0) / _MIB for sizes in reports.values()]
        axis.bar(range(len(names)), heights, bottom=floor, label=category)
        floor = [low + height for low, height in zip(floor, heights, strict=True)]
    axis.set_xticks(range(len(names)), names)
    axis.set(ylabel="saved for the backward pass, MiB")
    axis.legend(fontsize=7)
    _save(figure, path)


def plot_storage(
    path: Path, densities: Sequence[float], curves: Mapping[str, Sequence[float]]
) -> None:
    """Plots bytes against density, one line per storage format.

    Args:
        path: the file to write.
        densities: shares of non-zero entries, in [0, 1].
        curves: `{storage: bytes at each density}`, see `mlg_jax.memory.storage_curve`.
    """
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, sizes in curves.items():
        axis.plot(densities, [size / _MIB for size in sizes], label=name)
    axis.set(xlabel="share of non-zero entries", ylabel="MiB", ylim=(0, None))
    axis.legend(fontsize=7)
    _save(figure, path)


def plot_batch_memory(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Plots bytes of parameters, gradients, activations and temporaries against the batch size.

    Args:
        path: the file to write.
        rows: `mlg_jax.memory.BatchMemory` rows as mappings; None leaves a gap.
    """
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    batch_sizes = [row["batch_size"] for row in rows]
    for kind in ("parameter", "gradient", "activation", "temporary"):
        sizes = [row[f"{kind}_bytes"] for row in rows]
        heights = [float("nan") if size is None else size / _MIB for size in sizes]
        # Gradients are as large as parameters: dashes keep both lines visible.
        axis.plot(batch_sizes, heights, "o--" if kind == "gradient" else "o-", ms=3, label=kind)
    axis.set(xlabel="batch size", ylabel="MiB", xscale="log", yscale="log")
    axis.set_xticks(batch_sizes, [str(size) for size in batch_sizes])
    axis.minorticks_off()
    axis.legend(fontsize=7)
    _save(figure, path)


def plot_densities(path: Path, histograms: Mapping[str, Sequence[int]]) -> None:
    """Plots density histograms as a heat map, one row per layer.

    Args:
        path: the file to write.
        histograms: `{layer: number of batches in each of equal bins of [0, 1]}`.
    """
    figure = Figure(figsize=(6, 1.0 + 0.16 * len(histograms)), layout="constrained")
    axis = figure.subplots()
    rows = list(histograms.values())
    image = axis.imshow(rows, aspect="auto", extent=(0, 1, len(rows), 0), cmap="Blues")
    axis.set_yticks([index + 0.5 for index in range(len(rows))], list(histograms), fontsize=6)
    axis.set(xlabel="share of non-zero entries")
    figure.colorbar(image, label="batches")
    _save(figure, path)


def plot_tradeoff(path: Path, points: Mapping[str, tuple[float, float]]) -> None:
    """Plots memory against time, one labelled point per policy.

    Args:
        path: the file to write.
        points: `{policy: (seconds per step, bytes)}`.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    for index, (name, (seconds, num_bytes)) in enumerate(points.items()):
        marker = "os^vD<>P*X"[index % 10]
        axis.scatter([seconds], [num_bytes / _MIB], s=24, marker=marker, label=name)
    axis.set(xlabel="seconds per step", ylabel="MiB", xlim=(0, None), ylim=(0, None))
    figure.legend(loc="outside right upper", fontsize=7)
    _save(figure, path)


def plot_speedups(path: Path, points: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Plots measured speed-up against saved arithmetic, both relative to `generate`.

    Args:
        path: the file to write.
        points: `{implementation: [(ratio of multiply-adds, ratio of seconds), ...]}` with one pair
            per layer; a ratio is that of `generate` divided by that of the implementation.
    """
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, pairs in points.items():
        savings, speedups = zip(*pairs, strict=True)
        axis.scatter(savings, speedups, s=10, alpha=0.7, label=name)
    axis.axhline(1.0, color="grey", lw=0.8)
    axis.set(xscale="log", yscale="log", xlabel="multiply-adds: generate / implementation")
    axis.set(ylabel="time: generate / implementation")
    axis.legend(fontsize=7)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format=path.suffix[1:] or "png")
    write_atomically(path, picture.getvalue())
