"""Makes `python -m mlg_jax.cli` the same as `mlg`."""

import sys

from mlg_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
