"""Show what is in a packed model: its layers, bits and bytes, and the accuracy recorded in it."""

import argparse
import json
import os
from collections.abc import Mapping
from typing import Any

from mlg_jax._errors import MAX_LINE, printable
from mlg_jax.cli._options import write
from mlg_jax.engine import Manifest, summarize
from mlg_jax.export import read_packed
from mlg_jax.kernels import GenerationSpec, KernelSpec

NAME = "inspect"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file."""
    parser.add_argument("file", metavar="FILE", help="a packed model")
    parser.add_argument("--json", action="store_true", help="write JSON")


def run(args: argparse.Namespace) -> int:
    """Writes the manifest and the table; nothing is computed."""
    packed = read_packed(args.file)
    Manifest.of(packed, args.file)  # raises unless a predictor could be made of it
    summary, file_bytes = summarize(packed), os.path.getsize(args.file)
    if args.json:
        tree = {"file_bytes": file_bytes, **packed.manifest, "layers": summary.to_json()}
        write(json.dumps(tree, indent=1) + "\n")
    else:
        lines = [*_manifest_lines(packed.manifest), f"file bytes     {file_bytes:,}", ""]
        write("\n".join((*lines, summary.to_text())) + "\n")
    return 0


def _manifest_lines(manifest: Mapping[str, Any]) -> list[str]:
    """The parts of a manifest that say something, one a line."""
    lines = []
    for name, value in manifest.items():
        parts = value if isinstance(value, Mapping) else {name: value}
        for key, part in parts.items():
            text = _generation_text(part) if key == "generation" else _text(part)
            if text and key != "remat":  # which matters in training only
                lines.append(f"{printable(key.replace('_', ' ')):14} {printable(text, MAX_LINE)}")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _generation_text(value: Any) -> str:
    """As the paper writes it: "base_in-base_out-bits of B, U, V"."""
    if isinstance(value, list):
        return ", ".join(f"{pattern}: {_generation_text(spec)}" for pattern, spec in value)
    if value is None:
        return "none"
    spec = KernelSpec.from_json(value)
    return spec.notation() if isinstance(spec, GenerationSpec) else str(spec)
