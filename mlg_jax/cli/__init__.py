"""The command `mlg` for packed models, one module per subcommand."""

from mlg_jax.cli._main import main as main
