"""Figures: training curves, sizes and memory, drawn into files."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mlg_jax._atomic import write_atomically

_MIB = 2**20


def plot_curves(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Loss and accuracy over the steps of each run, `{name: lines of metrics.jsonl}`, as PNG."""
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
    """Stored and ordinary size of each layer, rows of `SizeReport.to_dict()`, as PNG."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.bar(range(len(rows)), [row["dense_kb"] for row in rows], label="ordinary")
    axis.bar(range(len(rows)), [row["kb"] for row in rows], label="stored")
    axis.set_xticks(range(len(rows)), [row["name"] for row in rows], rotation=90, fontsize=6)
    axis.set(yscale="log", ylabel="KB")
    axis.legend()
    _save(figure, path)


def plot_residuals(path: Path, reports: Mapping[str, Mapping[str, int]]) -> None:
    """Stacked bars of residual bytes, one bar a report: plain against policy, as PNG.

    Args:
        path: of the file.
        reports: `{"plain": bytes by kind or operation}`, as `MemoryReport.bytes_by_kind` and
            `bytes_by_operation`; a category keeps its colour in all bars.
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
    axis.set(ylabel="kept for the backward pass, MiB")
    axis.legend(fontsize=7)
    _save(figure, path)


def plot_storage(
    path: Path, densities: Sequence[float], curves: Mapping[str, Sequence[float]]
) -> None:
    """Bytes against the share of entries that are not zero, one line a storage, as PNG.

    Args:
        path: of the file.
        densities: in [0, 1].
        curves: `{storage: bytes at each density}`, as `mlg_jax.memory.storage_curve` gives them.
    """
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, sizes in curves.items():
        axis.plot(densities, [size / _MIB for size in sizes], label=name)
    axis.set(xlabel="share of entries that are not zero", ylabel="MiB", ylim=(0, None))
    axis.legend(fontsize=7)
    _save(figure, path)


def plot_batch_memory(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Parameters, gradients, activations and temporaries over the batch size, as PNG.

    Args:
        path: of the file.
        rows: `BatchMemory` rows as mappings; bytes that are None leave a gap.
    """
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    batch_sizes = [row["batch_size"] for row in rows]
    for kind in ("parameter", "gradient", "activation", "temporary"):
        sizes = [row[f"{kind}_bytes"] for row in rows]
        heights = [float("nan") if size is None else size / _MIB for size in sizes]
        # Gradients are as large as parameters: dashes let both be seen.
        axis.plot(batch_sizes, heights, "o--" if kind == "gradient" else "o-", ms=3, label=kind)
    axis.set(xlabel="batch size", ylabel="MiB", xscale="log", yscale="log")
    axis.set_xticks(batch_sizes, [str(size) for size in batch_sizes])
    axis.minorticks_off()
    axis.legend(fontsize=7)
    _save(figure, path)


def plot_densities(path: Path, histograms: Mapping[str, Sequence[int]]) -> None:
    """How many batches have which density, one row of colours a layer, as PNG.

    Args:
        path: of the file.
        histograms: `{layer: batches by density, in equal bins of [0, 1]}`.
    """
    figure = Figure(figsize=(6, 1.0 + 0.16 * len(histograms)), layout="constrained")
    axis = figure.subplots()
    rows = list(histograms.values())
    image = axis.imshow(rows, aspect="auto", extent=(0, 1, len(rows), 0), cmap="Blues")
    axis.set_yticks([index + 0.5 for index in range(len(rows))], list(histograms), fontsize=6)
    axis.set(xlabel="share of entries that are not zero")
    figure.colorbar(image, label="batches")
    _save(figure, path)


def plot_tradeoff(path: Path, points: Mapping[str, tuple[float, float]]) -> None:
    """Memory against time, one named point a policy, as PNG.

    Args:
        path: of the file.
        points: `{policy: (seconds a step, bytes)}`.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    for index, (name, (seconds, num_bytes)) in enumerate(points.items()):
        marker = "os^vD<>P*X"[index % 10]
        axis.scatter([seconds], [num_bytes / _MIB], s=24, marker=marker, label=name)
    axis.set(xlabel="seconds a step", ylabel="MiB", xlim=(0, None), ylim=(0, None))
    figure.legend(loc="outside right upper", fontsize=7)
    _save(figure, path)


def plot_speedups(path: Path, points: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Measured speed-up against the saving of arithmetic, one point a layer, as PNG.

    Args:
        path: of the file.
        points: `{implementation: [(multiply-adds of generate / its own, seconds of generate / its
            own), ...]}`.
    """
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, pairs in points.items():
        savings, speedups = zip(*pairs, strict=True)
        axis.scatter(savings, speedups, s=10, alpha=0.7, label=name)
    axis.axhline(1.0, color="grey", lw=0.8)
    axis.set(xscale="log", yscale="log", xlabel="multiply-adds, generate / this")
    axis.set(ylabel="time, generate / this")
    axis.legend(fontsize=7)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format=path.suffix[1:] or "png")
    write_atomically(path, picture.getvalue())
