"""Every step of the script for GPUs runs, at tiny sizes and without one."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu.sh"


def run(tmp_path, *steps):
    own = {"TOY": "1", "OUT": f"{tmp_path}/out", "WORK": f"{tmp_path}/work"}
    environ = os.environ | own | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    command = ["bash", str(SCRIPT), *steps]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_all_steps(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    names = re.findall(r"^#   (\w+)  ", SCRIPT.read_text(), re.MULTILINE)
    steps = [name for name in names if name.islower()]
    assert {path.stem for path in (tmp_path / "out").glob("*.done")} == set(steps)
    found = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*_cpu.json")]
    assert len(found) == 6 and all(content["results"] for content in found)
    assert "done before" in run(tmp_path, "bitmap").stdout


@pytest.mark.bad_input
def test_unknown_step(tmp_path):
    done = run(tmp_path, "nonsense")
    assert done.returncode == 2
    assert "A step must be one of those above; got 'nonsense'." in done.stderr
