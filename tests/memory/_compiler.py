"""Whether programs can be compiled for GPUs here."""

import importlib.util

import pytest

from mlg_jax.memory import _target_program

HAS_COMPILER = any(
    importlib.util.find_spec("jax_plugins") and importlib.util.find_spec(name)
    for name in _target_program._PLUGINS.values()
)
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="JAX's CUDA plugin is not installed")
