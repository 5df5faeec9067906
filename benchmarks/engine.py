"""Inference from a file (bytes, cold start, latency, throughput), compared with dense networks.

    python benchmarks/engine.py [--contestant NAME ...] [--runs 100] [--out DIR]

ResNet-18 for CIFAR from pixels to logits, each contestant in its own processes. Cold start is the
time from the start of the process to the first logits at batch 1; "cached" is the same with a warm
persistent compilation cache of JAX. PyTorch and ONNX Runtime take part if they are installed.
"""

import argparse
import importlib
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from _engines import CONTESTANTS, SIZE, installed

RESULTS = pathlib.Path(__file__).parent / "results"
COLUMNS = (
    "",
    "file KB",
    "import s",
    "load s",
    "cold start s",
    "cached s",
    "p50 ms",
    "p99 ms",
    "images/s at 128",
    "resident KB",
    "peak MiB",
)
CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def work(name, path, started, num_runs):
    """Measures one contestant in the current process."""
    contestant = CONTESTANTS[name]
    importlib.import_module(contestant.module)
    seconds = {"import": time.time() - started}
    begin = time.perf_counter()
    contestant.load(path)
    seconds["load"] = time.perf_counter() - begin
    pixels = np.random.default_rng(0).integers(0, 256, (128, SIZE, SIZE, 3), np.uint8)
    assert np.all(np.isfinite(contestant(pixels[:1])))
    seconds["cold_start"] = time.time() - started
    row = {"seconds": seconds, "resident_bytes": contestant.resident_bytes}
    if num_runs:
        latencies = timed(lambda: contestant(pixels[:1]), num_runs)
        p50, p99 = np.percentile(latencies, (50, 99))
        seconds |= {"p50": p50, "p99": p99}
        batch = statistics.median(timed(lambda: contestant(pixels), max(5, num_runs // 20)))
        row["images_per_second"] = len(pixels) / batch
    row["peak_process_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return row


def timed(call, num_runs):
    """Seconds of each call, after two warm-up calls."""
    seconds = []
    for _ in range(num_runs + 2):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return seconds[2:]


def spawn(name, path, num_runs, **extra_environment):
    """Runs `work` in a new process and returns its result."""
    command = [sys.executable, __file__, "--worker", name, str(path), repr(time.time())]
    done = subprocess.run(
        [*command, "--runs", str(num_runs)],
        env=os.environ | extra_environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(name, directory, num_runs):
    """Measures everything for one contestant."""
    path = pathlib.Path(directory) / name.replace(" ", "_")
    writer = "import sys, _engines; _engines.CONTESTANTS[sys.argv[1]].write(sys.argv[2])"
    here = pathlib.Path(__file__).parent
    subprocess.run([sys.executable, "-c", writer, name, str(path)], check=True, cwd=here)
    row = {"contestant": name, "file_bytes": path.stat().st_size} | spawn(name, path, num_runs)
    if "torch" not in CONTESTANTS[name].packages:
        cache = CACHE | {"JAX_COMPILATION_CACHE_DIR": f"{path}_cache"}
        spawn(name, path, 0, **cache)
        row["seconds"]["cached"] = spawn(name, path, 0, **cache)["seconds"]["cold_start"]
    return row


def as_cells(row):
    """A row of the table, in the order of `COLUMNS`."""
    seconds = row["seconds"]
    return (
        row["contestant"],
        f"{row['file_bytes'] / 1024:,.1f}",
        f"{seconds['import']:.2f}",
        f"{seconds['load']:.3f}",
        f"{seconds['cold_start']:.2f}",
        f"{seconds['cached']:.2f}" if "cached" in seconds else "",
        f"{1e3 * seconds['p50']:.2f}",
        f"{1e3 * seconds['p99']:.2f}",
        f"{row['images_per_second']:.0f}",
        f"{row['resident_bytes'] / 1024:,.1f}",
        f"{row['peak_process_bytes'] / 2**20:.0f}",
    )


def main():
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contestant", nargs="+", default=installed(), choices=list(CONTESTANTS))
    parser.add_argument("--runs", type=int, default=100, help="timed calls at batch 1")
    parser.add_argument("--out", default=str(RESULTS), help="directory of the JSON file")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, path, started = args.worker
        print(json.dumps(work(name, path, float(started), args.runs)))
        return
    from _measure import environment  # imports JAX, which not every contestant uses

    from mlg_jax._tables import table_head, table_row

    print(table_head(COLUMNS))
    results = []
    with tempfile.TemporaryDirectory() as directory:
        for name in args.contestant:
            results.append(measure(name, directory, args.runs))
            print(table_row(as_cells(results[-1])), flush=True)
    path = pathlib.Path(args.out) / f"engine_{environment()['backend']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(), "results": results}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
