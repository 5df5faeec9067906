"""Time a packed model on this machine: loading, first call, latency and throughput."""

import argparse
import json
import os
import sys
import time
from typing import Any

import jax
import numpy as np

from mlg_jax.cli._options import add_engine_arguments, load, packed_file, positive_integer
from mlg_jax.engine import BATCH_SIZES, Predictor

NAME = "bench"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, the batch sizes and the number of calls."""
    add_engine_arguments(parser)
    sizes = (BATCH_SIZES[0], BATCH_SIZES[-1])
    parser.add_argument(
        "--batch",
        type=positive_integer,
        nargs="+",
        default=sizes,
        metavar="N",
        help=f"batch sizes to time (default: {' '.join(map(str, sizes))})",
    )
    parser.add_argument(
        "--runs",
        type=positive_integer,
        default=30,
        metavar="N",
        help="timed calls per batch size, after the first (default: 30)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints seconds, images per second and bytes."""
    start = time.perf_counter()
    predictor = load(args, batch_sizes=args.batch)
    load_seconds = time.perf_counter() - start
    result = {
        "device": jax.devices()[0].device_kind,
        "file_bytes": os.path.getsize(packed_file(args)),
        "resident_bytes": predictor.resident_bytes,
        "load_seconds": load_seconds,
        "batches": [_timed(predictor, size, args.runs) for size in args.batch],
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n" if args.json else _as_text(result))
    return 0


def _timed(predictor: Predictor, batch_size: int, num_runs: int) -> dict[str, Any]:
    """Times of the first call, which compiles, and quantiles of the later ones."""
    images = _images(predictor, batch_size)
    seconds = []
    for _ in range(num_runs + 1):
        start = time.perf_counter()
        predictor.logits(images)
        seconds.append(time.perf_counter() - start)
    first, rest = seconds[0], seconds[1:]
    p50, p99 = np.percentile(rest, (50, 99)).tolist()
    return {
        "batch_size": batch_size,
        "first_seconds": first,
        "p50_seconds": p50,
        "p99_seconds": p99,
        "images_per_second": batch_size / p50,
    }


def _images(predictor: Predictor, batch_size: int) -> np.ndarray:
    """Random pixels if the file specifies the preprocessing, otherwise random floats."""
    random, shape = np.random.default_rng(0), (batch_size, *predictor.image_shape)
    if predictor.preprocessing is None:
        return random.standard_normal(shape, np.float32)
    return random.integers(0, 256, shape, np.uint8)


def _as_text(result: dict[str, Any]) -> str:
    lines = [
        f"device          {result['device']}",
        f"file bytes      {result['file_bytes']:,}",
        f"resident bytes  {result['resident_bytes']:,}",
        f"load            {result['load_seconds']:.3f} s",
        "",
        "batch  first call s      p50 ms      p99 ms    images/s",
    ]
    lines += [
        f"{row['batch_size']:5}  {row['first_seconds']:12.3f}  {1e3 * row['p50_seconds']:10.3f}"
        f"  {1e3 * row['p99_seconds']:10.3f}  {row['images_per_second']:10.1f}"
        for row in result["batches"]
    ]
    return "\n".join(lines) + "\n"
