"""Shared fixtures, and `--typecheck`: annotated array shapes checked at run time."""

import os
import pathlib

import hypothesis
import jax
import pytest

# Read when the first program is compiled. Half of the tests' time is LLVM's; what is compared here
# are values and bytes, and how hard it optimises moves neither. Flags that are set already stay:
# `XLA_FLAGS= pytest` compiles as users do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

_CHECKED_GENERATION = (
    "choose",
    "cost",
    "generate",
    "orthogonality",
    "project",
    "projection_spec",
    "spec",
)
REFERENCE = pathlib.Path(__file__).parent / "reference"

# Examples are drawn from a fixed seed and no health check looks at a clock: a test that passed
# passes again, on a loaded machine too. `--hypothesis-profile=default` draws new ones.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser):
    parser.addoption(
        "--typecheck",
        action="store_true",
        help="check shape annotations with beartype (run with -m 'not bad_input and not slow')",
    )


def pytest_configure(config):
    if config.getoption("--typecheck"):
        from jaxtyping import install_import_hook

        packages = [
            "mlg_jax.quant",
            # Not what applies the factors (nor mlg_jax._ordering): a constant arrives there
            # as a literal of JAX's own, which is no jax.Array.
            *(f"mlg_jax.generation._{name}" for name in _CHECKED_GENERATION),
            "mlg_jax.bitmap",
            "mlg_jax.data",
        ]
        config.stash["typecheck"] = install_import_hook(packages, "beartype.beartype")


@pytest.fixture
def x64():
    """64-bit types for the duration of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def reference():
    """Loads a file of reference numbers by name."""
    import numpy as np

    def load(name):
        with np.load(REFERENCE / f"{name}.npz") as archive:
            return dict(archive)

    return load
