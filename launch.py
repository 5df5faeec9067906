"""Runs an experiment; `python launch.py --help` explains the options."""

import sys

from mlg_jax.experiment import main

if __name__ == "__main__":
    sys.exit(main())
