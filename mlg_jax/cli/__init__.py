"""The command `mlg`: packed models at the command line, one file a subcommand."""

from mlg_jax.cli._main import main as main
