"""One compilation cache for all tests, so that the programs of the toy are compiled once."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from mlg_jax.train import enable_compilation_cache

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_enable_xla_caches",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(scope="package", autouse=True)
def compilation_cache(tmp_path_factory):
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    directory = tmp_path_factory.mktemp("cache")
    enable_compilation_cache(directory, min_compile_seconds=0.0)
    yield directory
    jax_cache.reset_cache()
    for name, value in before.items():
        jax.config.update(name, value)
