"""Sharded batches: every device packs its own rows."""

import os
import subprocess
import sys


def test_four_devices_against_one():
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(
        [sys.executable, "-m", "tests.remat.mesh_script"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
