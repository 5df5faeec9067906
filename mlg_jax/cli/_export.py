"""Convert a packed model for other runtimes: ONNX, dense PyTorch kernels, or StableHLO."""

import argparse
import json
import pathlib
import sys

from mlg_jax._atomic import write_atomically
from mlg_jax.cli._options import add_file_argument, add_weight_arguments, packed_file
from mlg_jax.cli._text import add_json_argument, positive_integer
from mlg_jax.engine import (
    IMAGE_DTYPES,
    LAYOUTS,
    PLATFORMS,
    WEIGHTS,
    dense_state,
    export_onnx,
    export_stablehlo,
)
from mlg_jax.export import PackedModel, read_packed, write_torch

NAME = "export"

_FORMATS = (".onnx", ".safetensors", ".stablehlo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, the output, and the options of ONNX and StableHLO artefacts."""
    add_file_argument(parser)
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        help="file to write; its suffix selects the format: .onnx for an ONNX model with the "
        "network's factors as integer codes, .safetensors for a PyTorch state dict "
        "with dense float32 kernels, .stablehlo for an artefact for `jax.export.deserialize`",
    )
    add_json_argument(parser)
    group = parser.add_argument_group("options for .onnx")
    group.add_argument(
        "--layout",
        default="NHWC",
        choices=LAYOUTS,
        help="order of the axes of the images: channels last or first (default: NHWC)",
    )
    group = parser.add_argument_group("options for .onnx and .stablehlo")
    group.add_argument(
        "--images",
        choices=IMAGE_DTYPES,
        help="input of the artefact: normalised float32 images, or uint8 pixels, which it "
        "preprocesses as the model file specifies (default: float32 for .stablehlo; for .onnx "
        "uint8 if the file specifies a preprocessing)",
    )
    group.add_argument(
        "--batch-size",
        type=positive_integer,
        default=1,
        metavar="N",
        help="batch size for which `--implementation auto` chooses; the artefact accepts any batch "
        "size (default: 1)",
    )
    group = parser.add_argument_group("options for .stablehlo")
    add_weight_arguments(group)
    group.add_argument(
        "--weights",
        default="constants",
        choices=WEIGHTS,
        help="whether weights are constants of the program or arguments of its call "
        "(default: constants)",
    )
    group.add_argument(
        "--platforms",
        nargs="+",
        default=PLATFORMS,
        choices=PLATFORMS,
        help="platforms on which the artefact can run (default: all)",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the file in the format of its suffix."""
    suffix = pathlib.Path(args.output).suffix
    if suffix not in _FORMATS:
        raise ValueError(f"OUTPUT must end in one of {list(_FORMATS)}; got {args.output!r}.")
    args.file, args.pretrained = packed_file(args), None
    packed = read_packed(args.file)
    if suffix == ".safetensors":
        num_bytes = write_torch(args.output, dense_state(packed, name=args.file))
    else:
        data = _onnx(packed, args) if suffix == ".onnx" else _stablehlo(packed, args)
        write_atomically(args.output, data)
        num_bytes = len(data)
    result = {"file": args.output, "file_bytes": num_bytes}
    sys.stdout.write(json.dumps(result) + "\n" if args.json else f"{num_bytes:,} bytes\n")
    return 0


def _onnx(packed: PackedModel, args: argparse.Namespace) -> bytes:
    options = ("images", "layout", "implementation", "model", "batch_size")
    chosen = {name: getattr(args, name) for name in options}
    return export_onnx(packed, name=args.file, **chosen)


def _stablehlo(packed: PackedModel, args: argparse.Namespace) -> bytes:
    options = (
        "weights",
        "residency",
        "fold",
        "implementation",
        "model",
        "batch_size",
        "platforms",
    )
    chosen = {name: getattr(args, name) for name in options}
    return export_stablehlo(packed, name=args.file, images=args.images or "float32", **chosen)
