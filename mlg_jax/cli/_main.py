"""The table of subcommands, and what becomes of their errors."""

import argparse
import importlib
import sys
from collections.abc import Sequence

import mlg_jax
from mlg_jax._errors import user_message

# Each is a module beside this one, imported when it is asked for: some need training's libraries,
# which take seconds.
COMMANDS = ("predict", "inspect", "bench", "import", "export", "compress")

INPUT_ERROR = 2  # the exit status of argparse, too


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `mlg`; returns the exit status: 0, or 2 and one line on stderr for wrong input."""
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
    """Knows the command that is given, or all where it is none of them."""
    parser = argparse.ArgumentParser(
        prog="mlg", description="Packed models: run them, look into them, time them."
    )
    parser.add_argument("--version", action="version", version=f"mlg_jax {mlg_jax.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in [name for name in COMMANDS if name in given[:1]] or COMMANDS:
        command = importlib.import_module(f"mlg_jax.cli._{name}")
        summary = str(command.__doc__).splitlines()[0]
        subparser = subparsers.add_parser(command.NAME, help=summary, description=summary)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser
