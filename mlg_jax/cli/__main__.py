"""`python -m mlg_jax.cli` is `mlg`."""

import sys

from mlg_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
