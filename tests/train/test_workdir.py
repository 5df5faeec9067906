"""The compilation cache of a work directory."""

import shutil

import jax
import jax.numpy as jnp
import pytest

from mlg_jax import train


def test_the_compilation_cache_works_after_a_first_compilation(tmp_path, compilation_cache):
    jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
    try:
        train.enable_compilation_cache(tmp_path / "a" / "b", min_compile_seconds=0)
        jax.jit(lambda x: jnp.sin(x) * 3 + x)(jnp.ones(7)).block_until_ready()
        assert any((tmp_path / "a" / "b").iterdir())
        assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700  # it holds native code
    finally:
        train.enable_compilation_cache(compilation_cache, min_compile_seconds=0)


def test_a_cache_that_was_moved_is_hit(tmp_path, compilation_cache):
    def names(directory):
        train.enable_compilation_cache(directory, min_compile_seconds=0)
        jax.clear_caches()
        jax.jit(lambda x: jnp.cos(x) * 5 + x)(jnp.ones(11)).block_until_ready()
        return {path.name for path in directory.iterdir() if path.name.endswith("-cache")}

    try:
        before = names(tmp_path / "here")
        shutil.move(tmp_path / "here", tmp_path / "there")
        assert before and names(tmp_path / "there") == before
    finally:
        train.enable_compilation_cache(compilation_cache, min_compile_seconds=0)


@pytest.mark.bad_input
def test_error_messages(tmp_path):
    with pytest.raises(ValueError, match="`min_compile_seconds` must be .*; got -1"):
        train.enable_compilation_cache(tmp_path, min_compile_seconds=-1)
