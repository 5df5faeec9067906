"""Metrics on disk and the compilation cache."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from mlg_jax import train
from mlg_jax.train._writers import MetricsWriter


def test_not_a_number_becomes_null(tmp_path):
    with MetricsWriter(tmp_path, resumed_step=0, num_steps=1) as writer:
        writer.write("train", step=1, metrics={"loss": math.nan, "accuracy": 0.5})
    text = (tmp_path / train.METRICS_FILE).read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "kind": "train",
        "step": 1,
        "loss": None,
        "accuracy": 0.5,
    }


def test_lines_past_the_resumed_step_are_dropped(tmp_path):
    with MetricsWriter(tmp_path, resumed_step=0, num_steps=9) as writer:
        for step in (2, 4, 6):
            writer.write("train", step=step, metrics={"loss": step})
    with (tmp_path / train.METRICS_FILE).open("a") as stream:
        stream.write('{"kind": "train", "st')
    with MetricsWriter(tmp_path, resumed_step=4, num_steps=9) as writer:
        writer.write("train", step=5, metrics={"loss": 5})
    assert [line["step"] for line in train.read_metrics(tmp_path)] == [2, 4, 5]


def test_no_directory_no_metrics(tmp_path):
    assert train.read_metrics(tmp_path) == []


def test_the_compilation_cache_works_after_a_first_compilation(tmp_path, compilation_cache):
    jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
    try:
        train.enable_compilation_cache(tmp_path / "a" / "b", min_compile_seconds=0)
        jax.jit(lambda x: jnp.sin(x) * 3 + x)(jnp.ones(7)).block_until_ready()
        assert any((tmp_path / "a" / "b").iterdir())
    finally:
        train.enable_compilation_cache(compilation_cache, min_compile_seconds=0)


@pytest.mark.bad_input
def test_error_messages(tmp_path):
    with pytest.raises(ValueError, match="`min_compile_seconds` must be .*; got -1"):
        train.enable_compilation_cache(tmp_path, min_compile_seconds=-1)
