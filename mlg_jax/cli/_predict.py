"""Classify image files."""

import argparse
import dataclasses
import json
import sys

from mlg_jax.cli._options import add_engine_arguments, load, positive_integer
from mlg_jax.data import FORMAT_NAMES
from mlg_jax.engine import Label

NAME = "predict"

_CHUNK = 128  # images that are decoded at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, the images, how many classes to show."""
    add_engine_arguments(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help=f"{FORMAT_NAMES} files")
    parser.add_argument("--top", type=positive_integer, default=5, metavar="N", help="default: 5")


def run(args: argparse.Namespace) -> int:
    """Writes the most probable classes of each image."""
    predictor = load(args)
    if predictor.preprocessing is None:
        raise ValueError(f"{args.file} does not say how images are to be preprocessed.")
    top = min(args.top, predictor.spec.num_classes)
    found: list[tuple[str, list[Label]]] = []
    for start in range(0, len(args.images), _CHUNK):
        paths = args.images[start : start + _CHUNK]
        labels = predictor.labels(predictor.preprocessing.read(paths), top=top)
        found += zip(paths, labels, strict=True)
    sys.stdout.write(_as_json(found) if args.json else "".join(map(_as_text, found)))
    return 0


def _as_text(item: tuple[str, list[Label]]) -> str:
    path, labels = item
    return f"{path}\n" + "".join(f"  {row.probability:7.2%}  {row.name}\n" for row in labels)


def _as_json(found: list[tuple[str, list[Label]]]) -> str:
    rows = [
        {"image": path, "labels": [dataclasses.asdict(label) for label in labels]}
        for path, labels in found
    ]
    return json.dumps(rows, indent=1) + "\n"
