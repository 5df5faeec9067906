"""Usage: python launch.py --config=configs/NAME.py [--workdir=DIR] [--mode=M] [--config.a.b=X]."""

import sys

from mlg_jax.experiment import main

if __name__ == "__main__":
    sys.exit(main())
