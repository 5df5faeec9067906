"""Sharded batches: each device packs its own rows."""

import subprocess
import sys

from tests._devices import four_devices


def test_four_devices_against_one():
    process = subprocess.run(
        [sys.executable, "-m", "tests.remat.mesh_script"],
        env=four_devices(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
