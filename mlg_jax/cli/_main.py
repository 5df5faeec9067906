"""The subcommands of `mlg`, and how their errors are reported."""

import argparse
import importlib
import sys
import types
from collections.abc import Sequence

import mlg_jax
from mlg_jax._errors import user_message

# Each is a module of this package, imported on demand: some need the training libraries, which take
# seconds to import.
COMMANDS = ("predict", "inspect", "bench", "train", "compress", "import", "export")

INPUT_ERROR = 2  # the exit status of argparse


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `mlg`; returns 0, or 2 after an input error, which is one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser(given).parse_args(given)
    try:
        return args.run(args)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        sys.stderr.write(f"error: {message}\n")
        return INPUT_ERROR


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """A parser with the given command only, or with all of them if none is given."""
    parser = argparse.ArgumentParser(
        prog="mlg", description="Train, compress, convert, inspect, time and run small networks."
    )
    parser.add_argument("--version", action="version", version=f"mlg_jax {mlg_jax.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in [name for name in COMMANDS if name in given[:1]] or COMMANDS:
        command = _command(name, given)
        summary = str(command.__doc__).splitlines()[0]
        subparser = subparsers.add_parser(command.NAME, help=summary, description=summary)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def _command(name: str, given: Sequence[str]) -> types.ModuleType:
    """The module of a command; `predict` of an ONNX model has one that starts without JAX."""
    is_onnx = name == "predict" and any(argument.endswith(".onnx") for argument in given)
    return importlib.import_module(f"mlg_jax.cli._{name}{'_onnx' if is_onnx else ''}")
