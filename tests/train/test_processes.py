"""Tests that need separate processes: signals, kills, four devices, two hosts."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from mlg_jax import train
from tests._devices import four_devices
from tests.train import toy

ROOT = pathlib.Path(__file__).parents[2]
TIMEOUT_SECONDS = 240


def start(module, *args, cache, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, args)],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",  # as in this process
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    return process.returncode, output


@pytest.mark.parametrize(
    ("name", "code"),
    [("SIGTERM", train.TrainingInterrupted.exit_code), ("SIGKILL", -signal.SIGKILL)],
)
def test_a_killed_process_resumes_bit_exactly(tmp_path, compilation_cache, name, code):
    """Kills itself while loading batch 7, is resumed here, and equals an uninterrupted run."""
    process = start(
        "tests.train.toy", tmp_path, "--signal", name, "--at", 7, cache=compilation_cache
    )
    returncode, output = finish(process)
    assert returncode == code, output
    assert not (tmp_path / "final.npz").exists()
    steps = sorted(int(p.name) for p in (tmp_path / train.CHECKPOINT_DIR).iterdir())
    assert steps[-1] == (7 if name == "SIGTERM" else 6)
    toy.assert_equal(toy.run(work_dir=tmp_path).state, toy.run().state)


def wait_for_a_new_checkpoint(directory, process):
    """Returns when the process has started to write a checkpoint, finished or not."""
    names = {p.name for p in directory.glob("*")}
    while process.poll() is None and {p.name for p in directory.glob("*")} <= names:
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_moment_resumes_bit_exactly(tmp_path, compilation_cache, seed):
    """Killed repeatedly from outside, possibly while writing a checkpoint, until it finishes."""
    rng = np.random.default_rng(seed)
    args = ("tests.train.toy", tmp_path, "--epochs", 8, "--delay", 0.1)
    num_kills = 0
    while not (tmp_path / "final.npz").exists():
        process = start(*args, cache=compilation_cache)
        if num_kills < 3:
            wait_for_a_new_checkpoint(tmp_path / train.CHECKPOINT_DIR, process)
            time.sleep(rng.uniform(0.0, 0.5))
            process.kill()
        returncode, output = finish(process)
        assert returncode in (0, -signal.SIGKILL), output
        num_kills += returncode != 0
    assert num_kills == 3
    expected = toy.flat(toy.run(spec=toy.make_spec(num_epochs=8)).state)
    with np.load(tmp_path / "final.npz") as final:
        assert set(final) == set(expected)
        for name in final:
            np.testing.assert_array_equal(final[name], expected[name], err_msg=name)


def test_four_devices_against_one(compilation_cache):
    process = start("tests.train.mesh_script", cache=compilation_cache, **four_devices())
    returncode, output = finish(process)
    assert returncode == 0, output


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_against_one(tmp_path, compilation_cache):
    """Each process holds half the rows; they share a work directory that is written once."""
    port = free_port()
    processes = [
        start("tests.train.toy", tmp_path, "--process", i, "--port", port, cache=compilation_cache)
        for i in range(2)
    ]
    for returncode, output in list(map(finish, processes)):
        assert returncode == 0, output
    single = toy.run(toy.make_task(loss_fn=toy.make_loss()), work_dir=tmp_path / "single")
    expected = toy.flat(single.state)
    with np.load(tmp_path / "final.npz") as final:
        for name, value in expected.items():
            # Adam divides by the root of the second moment, which amplifies early rounding errors.
            np.testing.assert_allclose(final[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    lines, right = train.read_metrics(tmp_path), train.read_metrics(tmp_path / "single")
    assert [line["step"] for line in lines] == [line["step"] for line in right]
    for line, expected_line in list(zip(lines, right, strict=True))[:3]:
        assert line["loss"] == pytest.approx(expected_line["loss"], rel=1e-5)
    params, _, meta = train.load_variables(tmp_path / train.CHECKPOINT_DIR, which="latest")
    assert meta["step"] == 12
    for name, value in toy.flat(params).items():
        found = toy.flat(single.state.params)[name]
        np.testing.assert_allclose(value, found, rtol=1e-4, atol=1e-5, err_msg=name)
