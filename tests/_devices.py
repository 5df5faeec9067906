"""Processes that see four CPU devices."""

import os
import subprocess
import sys


def four_devices():
    """The present environment, XLA's other flags included."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def assert_on_four_devices(module):
    """Runs a module of the tests as a script; what it prints is shown if it fails."""
    process = subprocess.run(
        [sys.executable, "-m", module],
        env=four_devices(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
