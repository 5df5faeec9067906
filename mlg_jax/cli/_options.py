"""Arguments that several subcommands share."""

import argparse
import sys
from typing import Any

from mlg_jax.engine import RESIDENCIES, Predictor, load_packed
from mlg_jax.kernels import implementation_names


def positive_integer(text: str) -> int:
    """An argument's value; argparse turns the error into its own."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1; got {value}.")
    return value


def write(text: str) -> None:
    """Writes to stdout; characters that its encoding does not have as escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """How the network is kept and run."""
    parser.add_argument("file", metavar="FILE", help="a packed model")
    parser.add_argument("--residency", default="float", choices=RESIDENCIES, help="of the weights")
    parser.add_argument("--fold", action="store_true", help="norms into the convolutions")
    parser.add_argument(
        "--implementation", default="auto", choices=implementation_names(), help="of convolutions"
    )
    parser.add_argument("--json", action="store_true", help="write JSON")


def load(args: argparse.Namespace, **options: Any) -> Predictor:
    """The predictor that the arguments ask for."""
    names = ("residency", "fold", "implementation")
    return load_packed(args.file, **{name: getattr(args, name) for name in names}, **options)
