"""Arguments that several subcommands share."""

import argparse
import sys
from typing import Any

from mlg_jax.engine import RESIDENCIES, Predictor, load_packed
from mlg_jax.kernels import implementation_names


def positive_integer(text: str) -> int:
    """Converts an argument; argparse reports the error."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1; got {value}.")
    return value


def write(text: str) -> None:
    """Writes to stdout; characters outside its encoding are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, how its network is held and computed, and the output format."""
    add_file_argument(parser)
    add_weight_arguments(parser)
    add_json_argument(parser)


def add_file_argument(parser: argparse.ArgumentParser) -> None:
    """The packed model."""
    parser.add_argument("file", metavar="FILE", help="packed model (.mlg)")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """The output format."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_weight_arguments(group: argparse._ActionsContainer) -> None:
    """How weights are held, and how generated layers compute."""
    group.add_argument(
        "--residency",
        default="float",
        choices=RESIDENCIES,
        help="how weights are held in memory. float: as float32 factors; codes: as integers of 8 "
        "or 16 bits; packed: as the bytes of the file. The latter two are decoded in every call "
        "(default: float)",
    )
    group.add_argument(
        "--fold",
        action="store_true",
        help="fold each normalisation layer into the convolution before it",
    )
    group.add_argument(
        "--implementation",
        default="auto",
        choices=implementation_names(),
        help="how convolutions with generated kernels are computed; auto chooses the fastest for "
        "each layer (default: auto)",
    )


def load(args: argparse.Namespace, **options: Any) -> Predictor:
    """Loads the predictor with the options of `add_weight_arguments`."""
    names = ("residency", "fold", "implementation")
    return load_packed(args.file, **{name: getattr(args, name) for name in names}, **options)
