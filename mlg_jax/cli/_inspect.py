"""Show the contents of a packed model: layers, bit widths, bytes and recorded accuracy."""

import argparse
import json
import os
from collections.abc import Mapping
from typing import Any

from mlg_jax._errors import MAX_LINE, printable
from mlg_jax.cli._options import add_file_argument, packed_file
from mlg_jax.cli._text import add_json_argument, write
from mlg_jax.engine import Manifest, summarize
from mlg_jax.export import read_packed
from mlg_jax.kernels import GenerationSpec, KernelsByPath, KernelSpec

NAME = "inspect"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file."""
    add_file_argument(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the manifest and the table of layers; nothing is decoded or compiled."""
    path = packed_file(args)
    packed = read_packed(path)
    Manifest.of(packed, path)  # raises if no predictor can be made from it
    summary, file_bytes = summarize(packed), os.path.getsize(path)
    if args.json:
        tree = {"file_bytes": file_bytes, **packed.manifest, "layers": summary.to_json()}
        write(json.dumps(tree, indent=1) + "\n")
    else:
        lines = [*_manifest_lines(packed.manifest), f"file bytes     {file_bytes:,}", ""]
        write("\n".join((*lines, summary.to_text())) + "\n")
    return 0


def _manifest_lines(manifest: Mapping[str, Any]) -> list[str]:
    """One line for each entry of the manifest that is not empty."""
    lines = []
    for name, value in manifest.items():
        parts = value if isinstance(value, Mapping) else {name: value}
        for key, part in parts.items():
            is_kernel = key in ("generation", "kernel")
            text = _generation_text(part) if is_kernel else _text(part)
            if text and key != "remat":  # matters only in training
                lines.append(f"{printable(key.replace('_', ' ')):14} {printable(text, MAX_LINE)}")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _generation_text(value: Any) -> str:
    """The paper's notation, "base_in-base_out-bits of B, U, V"."""
    if isinstance(value, list):
        return ", ".join(f"{pattern}: {_generation_text(spec)}" for pattern, spec in value)
    if value is None:
        return "none"
    if value.get("kind") == KernelsByPath.kind:
        return _generation_text(value["choices"])
    spec = KernelSpec.from_json(value)
    return spec.notation() if isinstance(spec, GenerationSpec) else str(spec)
