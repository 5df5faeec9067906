"""Figures: training curves and sizes, drawn into files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


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


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)
