"""Classify image files with a packed model."""

import argparse

from mlg_jax.cli._onnx_session import OnnxSession
from mlg_jax.cli._options import add_engine_arguments, load, packed_file
from mlg_jax.cli._text import Found, add_image_arguments, write_labels
from mlg_jax.engine import BATCH_SIZES, export_onnx
from mlg_jax.export import read_packed

NAME = "predict"

_CHUNK_PIXELS = 2**21  # decoded and classified at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, the images and the number of classes to show."""
    add_engine_arguments(parser)
    add_image_arguments(parser)
    parser.add_argument(
        "--runtime",
        choices=("jax", "onnx"),
        default="jax",
        help="what computes: JAX, or ONNX Runtime, for which the model is exported first. With an "
        "ONNX model as FILE, written by `mlg export`, neither is needed and the command starts at "
        "once (default: jax)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the most probable classes of each image."""
    if args.pretrained is not None and args.file is not None:  # then every argument is an image
        args.images, args.file = [args.file, *args.images], None
    if args.pretrained is None and args.file is None:
        raise ValueError(f"Give FILE and at least one IMAGE; got {args.images[0]!r} only.")
    if args.runtime == "onnx":
        return _run_onnx(args)
    predictor = load(args)
    if predictor.preprocessing is None:
        raise ValueError(f"{packed_file(args)} does not specify how images are preprocessed.")
    top = min(args.top, predictor.spec.num_classes)
    found: Found = []
    chunk = _chunk_size(*predictor.preprocessing.image_size)
    for start in range(0, len(args.images), chunk):
        paths = args.images[start : start + chunk]
        labels = predictor.labels(predictor.preprocessing.read(paths), top=top)
        found += zip(paths, labels, strict=True)
    write_labels(found, as_json=args.json)
    return 0


def _run_onnx(args: argparse.Namespace) -> int:
    path = packed_file(args)
    chosen = {"implementation": args.implementation, "model": args.model}
    session = OnnxSession(export_onnx(read_packed(path), name=path, **chosen), path)
    labels = session.labels(args.images, args.top)
    write_labels(list(zip(args.images, labels, strict=True)), as_json=args.json)
    return 0


def _chunk_size(height: int, width: int) -> int:
    """The largest of `BATCH_SIZES` within `_CHUNK_PIXELS`; 1 if an image alone exceeds it."""
    sizes = [size for size in BATCH_SIZES if size * height * width <= _CHUNK_PIXELS]
    return max(sizes, default=1)
