"""Measurement for benchmarks: warm-up, blocking until ready, medians, machine and versions."""

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time

import jax

RESULTS = pathlib.Path(__file__).parent / "results"


def median_seconds(call, *, num_runs, min_seconds=0.0):
    """Median and quartiles of `call()` in seconds, until its result is ready; one warm-up call."""
    jax.block_until_ready(call())
    times, start = [], time.perf_counter()
    while len(times) < num_runs or time.perf_counter() - start < min_seconds:
        begin = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begin)
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {
        "median": statistics.median(times),
        "q1": quartiles[0],
        "q3": quartiles[2],
        "n": len(times),
    }


def compiled_bytes(compiled):
    """Bytes of a compiled program, by kind."""
    memory = compiled.memory_analysis()
    return {
        "temporary": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
    }


def environment():
    """The machine and the versions, to be stored with every result."""
    packages = ("jax", "jaxlib", "flax", "numpy")
    return {
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "processor": _processor(),
        "num_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor():
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def save(name, results, directory=RESULTS, where=None):
    """Writes `{environment, results}` as JSON and returns the path; `where`: what they are of."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}_{where or jax.default_backend()}.json"
    path.write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")
    return path
