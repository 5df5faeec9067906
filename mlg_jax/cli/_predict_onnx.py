"""Classify image files with an ONNX model of `mlg export`."""

import argparse

from mlg_jax.cli._onnx_session import OnnxSession
from mlg_jax.cli._text import add_image_arguments, add_json_argument, write_labels

NAME = "predict"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, the images and the number of classes to show."""
    parser.add_argument("file", metavar="FILE", help="ONNX model written by `mlg export` (.onnx)")
    add_json_argument(parser)
    add_image_arguments(parser)
    parser.add_argument(
        "--runtime", choices=("onnx",), default="onnx", help="what computes: ONNX Runtime"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the most probable classes of each image."""
    labels = OnnxSession(args.file, args.file).labels(args.images, args.top)
    write_labels(list(zip(args.images, labels, strict=True)), as_json=args.json)
    return 0
