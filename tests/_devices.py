"""The environment of a process that sees four CPU devices."""

import os


def four_devices():
    """The present environment, XLA's other flags included."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
