"""Write a packed model for other runtimes: ordinary kernels, or a compiled program's source."""

import argparse
import json
import pathlib
import sys

from mlg_jax._atomic import write_atomically
from mlg_jax.cli._options import positive_integer
from mlg_jax.engine import (
    IMAGE_DTYPES,
    PLATFORMS,
    RESIDENCIES,
    WEIGHTS,
    dense_state,
    export_stablehlo,
)
from mlg_jax.export import read_packed, write_torch
from mlg_jax.kernels import implementation_names

NAME = "export"

_FORMATS = (".safetensors", ".stablehlo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, what to write, and how an artefact is made."""
    parser.add_argument("file", metavar="FILE", help="a packed model")
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        help=".safetensors: ordinary float32 kernels by PyTorch's names; .stablehlo: an artefact "
        "for `jax.export.deserialize`",
    )
    group = parser.add_argument_group("of artefacts")
    group.add_argument("--images", default="float32", choices=IMAGE_DTYPES, help="its input")
    group.add_argument("--weights", default="constants", choices=WEIGHTS, help="where they are")
    group.add_argument("--residency", default="float", choices=RESIDENCIES, help="of the weights")
    group.add_argument("--fold", action="store_true", help="norms into the convolutions")
    group.add_argument(
        "--implementation", default="auto", choices=implementation_names(), help="of convolutions"
    )
    group.add_argument(
        "--batch-size", type=positive_integer, default=1, help="what `auto` chooses for"
    )
    group.add_argument("--platforms", nargs="+", default=PLATFORMS, choices=PLATFORMS)
    parser.add_argument("--json", action="store_true", help="write JSON")


def run(args: argparse.Namespace) -> int:
    """Writes the file its suffix asks for."""
    suffix = pathlib.Path(args.output).suffix
    if suffix not in _FORMATS:
        raise ValueError(f"OUTPUT must end in one of {list(_FORMATS)}; got {args.output!r}.")
    packed = read_packed(args.file)
    if suffix == ".safetensors":
        num_bytes = write_torch(args.output, dense_state(packed, name=args.file))
    else:
        options = (
            "images",
            "weights",
            "residency",
            "fold",
            "implementation",
            "batch_size",
            "platforms",
        )
        chosen = {name: getattr(args, name) for name in options}
        data = export_stablehlo(packed, name=args.file, **chosen)
        write_atomically(args.output, data)
        num_bytes = len(data)
    result = {"file": args.output, "file_bytes": num_bytes}
    sys.stdout.write(json.dumps(result) + "\n" if args.json else f"{num_bytes:,} bytes\n")
    return 0
