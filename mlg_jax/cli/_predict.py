"""Classify image files with a packed model."""

import argparse
import dataclasses
import json

from mlg_jax._errors import MAX_LINE, printable
from mlg_jax.cli._options import add_engine_arguments, load, packed_file, positive_integer, write
from mlg_jax.data import FORMAT_NAMES
from mlg_jax.engine import BATCH_SIZES, Label

NAME = "predict"

_CHUNK_PIXELS = 2**21  # decoded and classified at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, the images and the number of classes to show."""
    add_engine_arguments(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help=f"image files ({FORMAT_NAMES})")
    parser.add_argument(
        "--top",
        type=positive_integer,
        default=5,
        metavar="N",
        help="number of most probable classes to print per image (default: 5)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the most probable classes of each image."""
    if args.pretrained is not None and args.file is not None:  # then every argument is an image
        args.images, args.file = [args.file, *args.images], None
    if args.pretrained is None and args.file is None:
        raise ValueError(f"Give FILE and at least one IMAGE; got {args.images[0]!r} only.")
    predictor = load(args)
    if predictor.preprocessing is None:
        raise ValueError(f"{packed_file(args)} does not specify how images are preprocessed.")
    top = min(args.top, predictor.spec.num_classes)
    found: list[tuple[str, list[Label]]] = []
    chunk = _chunk_size(*predictor.preprocessing.image_size)
    for start in range(0, len(args.images), chunk):
        paths = args.images[start : start + chunk]
        labels = predictor.labels(predictor.preprocessing.read(paths), top=top)
        found += zip(paths, labels, strict=True)
    write(_as_json(found) if args.json else "".join(map(_as_text, found)))
    return 0


def _chunk_size(height: int, width: int) -> int:
    """The largest of `BATCH_SIZES` within `_CHUNK_PIXELS`; 1 if an image alone exceeds it."""
    sizes = [size for size in BATCH_SIZES if size * height * width <= _CHUNK_PIXELS]
    return max(sizes, default=1)


def _as_text(item: tuple[str, list[Label]]) -> str:
    path, labels = item
    rows = (f"  {row.probability:7.2%}  {printable(row.name)}\n" for row in labels)
    return f"{printable(path, MAX_LINE)}\n" + "".join(rows)


def _as_json(found: list[tuple[str, list[Label]]]) -> str:
    rows = [
        {"image": path, "labels": [dataclasses.asdict(label) for label in labels]}
        for path, labels in found
    ]
    return json.dumps(rows, indent=1) + "\n"
