"""The examples run, each in a process of its own, and print what they promise."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "examples"


def run(name):
    """As a user would, without the compiler flags that make the tests fast."""
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


def shares(text):
    return [float(number) for number in re.findall(r"([\d.]+)%", text)]


def test_the_plain_model_is_plain():
    """And 40 lines long, without its docstrings and blank lines."""
    text = (FOLDER / "plain_resnet.py").read_text()
    assert "import mlg_jax" not in text
    lines = [line for line in text.splitlines() if line.strip() and '"""' not in line]
    assert len(lines) <= 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linen_resnet", "nnx_resnet"])
def test_models_that_stand_are_compressed_and_served(name):
    text = run(name)
    trained, projected, tuned, compressed = shares(text)
    assert trained > 95 and tuned > 85 and compressed > 70 and projected < tuned
    assert text.count("the same logits in a new process") == 2


@pytest.mark.slow
def test_nothing_assumes_residual_networks():
    text = run("beyond_resnets")
    plain, small, transformer, small_transformer = shares(text)
    assert min(plain, small, transformer, small_transformer) > 88
    sizes = [float(number) for number in re.findall(r"([\d.]+) KB", text)]
    assert sizes[1] < sizes[0] / 8 and sizes[3] < sizes[2] / 6


def test_four_devices_train_as_one_does():
    text = run("data_parallel")
    assert text.startswith("4 devices")
    assert float(text.split()[-1]) < 1e-5
