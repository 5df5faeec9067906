"""The report of an experiment, accuracies and sizes, as Markdown, figures and JSON."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mlg_jax._atomic import write_atomically
from mlg_jax._tables import table
from mlg_jax.models import SizeReport
from mlg_jax.plots import plot_curves, plot_sizes

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")

_COLUMNS = {
    "test_accuracy": ("test accuracy", "{:.2%}"),
    "test_loss": ("test loss", "{:.4f}"),
    "test_accuracy_augmented": ("with flips and shifts", "{:.2%}"),
}


def write_report(
    directory: Path,
    config: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
    sizes: SizeReport,
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Writes `report.md`, `summary.json`, `curves.png` and `sizes.png`.

    Args:
        directory: where to write; created if missing.
        config: the whole configuration.
        results: `{"student": {"test_accuracy": ..., "test_loss": ...}, ...}`, and, if there is a
            packed student, `{"packed": {"file": ..., "bytes": ...}}`.
        sizes: of the student.
        curves: metrics of the trained stages, by name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    total = sizes.total
    summary = {
        **results,
        "size": {
            "num_parameters": total.num_params,
            "num_dense_parameters": total.num_dense_params,
            "kb": total.kb,
            "dense_kb": total.dense_kb,
            "ratio": total.ratio,
        },
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "config": config,
    }
    write_atomically(directory / "summary.json", f"{json.dumps(summary, indent=1)}\n".encode())
    plot_curves(directory / "curves.png", curves)
    plot_sizes(directory / "sizes.png", sizes.to_dict()["layers"])
    write_atomically(directory / "report.md", _markdown(summary, sizes).encode())


def _counted(implementations: Mapping[str, Mapping[str, int]]) -> str:
    return "; ".join(
        f"{when}: " + ", ".join(f"{num} {name}" for name, num in counts.items())
        for when, counts in implementations.items()
    )


def _markdown(summary: Mapping[str, Any], sizes: SizeReport) -> str:
    names = [name for name in ("teacher", "projected", "student") if name in summary]
    shown = {name: column for name, column in _COLUMNS.items() if name in summary[names[0]]}
    rows = (
        (n, *(form.format(summary[n][name]) for name, (_, form) in shown.items())) for n in names
    )
    size, packed = summary["size"], summary.get("packed")
    packed_lines = [f"Packed: `{packed['file']}`, {packed['bytes']:,} bytes.", ""] if packed else []
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    lines = [
        "# Report",
        "",
        table(("network", *(header for header, _ in shown.values())), rows),
        "",
        f"Student: {size['num_parameters']:,} of {size['num_dense_parameters']:,} parameters, "
        f"{size['kb']:,.2f} of {size['dense_kb']:,.2f} KB, ratio {size['ratio']:.4f}.",
        "",
        *packed_lines,
        f"Implementations of generated layers: {_counted(summary.get('implementations', {}))}.",
        "",
        "![curves](curves.png)",
        "",
        "![sizes](sizes.png)",
        "",
        sizes.to_markdown(),
        "",
        f"{summary['device']}, Python {summary['python']}, {versions}.",
        "",
        "```json",
        json.dumps(summary["config"], indent=1),
        "```",
        "",
    ]
    return "\n".join(lines)
