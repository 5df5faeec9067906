"""Time of a training step of ResNet-18 on a GPU, kernel by kernel, by JAX's profiler.

    python benchmarks/kernels.py [--batch 128] [--dtype bfloat16] [--steps 5]
                                 [--only "auto, quantised" ...] [--cache DIR]

Only what the GPU computes is counted, not the time between kernels. `dense` is plain Flax.
"""

import argparse
import collections
import pathlib
import re
import tempfile
import warnings

import jax
import jax.numpy as jnp
from _measure import RESULTS, save
from compute import call_of, contestants, is_wanted, tracing

from mlg_jax._tables import table_head, table_row

COLUMNS = ("contestant", "kernels a step, measured", "microseconds, measured", "of dense")


def kernel_times(program, arguments, num_steps):
    """Microseconds and number a step of every kind of kernel, by name without its index."""
    for _ in range(3):
        jax.block_until_ready(program(*arguments))
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            for _ in range(num_steps):
                result = program(*arguments)
            jax.block_until_ready(result)
        files = list(pathlib.Path(directory).rglob("*.xplane.pb"))
        events = [event for file in files for event in device_events(file)]
    found = collections.defaultdict(lambda: [0.0, 0.0])
    for name, microseconds in events:
        kind = found[re.sub(r"[._]\d+$", "", name)]
        kind[0] += microseconds / num_steps
        kind[1] += 1 / num_steps
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def device_events(file):
    """Name and microseconds of everything that the streams of the GPU ran."""
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        if "gpu" not in plane.name.lower():
            continue
        for line in plane.lines:
            if line.name.startswith("Stream"):
                yield from ((event.name, event.duration_ns / 1e3) for event in line.events)


def main():
    """Profiles every contestant, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=5, help="profiled steps")
    parser.add_argument("--only", nargs="+", help="contestants in addition to dense")
    parser.add_argument("--cache", default=None, help="directory of compiled programs")
    parser.add_argument("--out", default=str(RESULTS), help="directory of the JSON file")
    args = parser.parse_args()
    if args.cache:
        jax.config.update("jax_compilation_cache_dir", args.cache)
    dtype, results = jnp.dtype(args.dtype), []
    print(table_head(COLUMNS))
    for name, model in contestants("resnet18", dtype, is_training=True).items():
        if not is_wanted(name, args):
            continue
        fn, arguments = call_of(model, True, args.batch, 32, dtype)
        with tracing(model):
            program = jax.jit(fn).lower(*arguments).compile()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the profiler's own types
            times = kernel_times(program, arguments, args.steps)
        total = sum(microseconds for microseconds, _ in times.values())
        number = sum(number for _, number in times.values())
        results.append(
            {
                "network": "resnet18",
                "pass": "training step",
                "batch": args.batch,
                "dtype": args.dtype,
                "contestant": name,
                "kernel_microseconds": total,
                "num_kernels": number,
                "by_kind": times,
            }
        )
        share = total / (results[0]["kernel_microseconds"] or 1)  # 0 where there is no GPU
        print(table_row((name, f"{number:.0f}", f"{total:.0f}", f"{share:.2f}")), flush=True)
    path = save(f"kernels_resnet18_{args.dtype}", results, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
