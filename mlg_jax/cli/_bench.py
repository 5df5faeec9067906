"""Time a packed model on this machine: loading, first call, latency and throughput."""

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mlg_jax.cli._onnx_session import OnnxSession
from mlg_jax.cli._options import add_engine_arguments, load, packed_file
from mlg_jax.cli._text import positive_integer
from mlg_jax.engine import BATCH_SIZES, Predictor, UnsupportedOperationError, export_onnx
from mlg_jax.export import read_packed

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
    result: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "file_bytes": os.path.getsize(packed_file(args)),
        "resident_bytes": predictor.resident_bytes,
        "load_seconds": load_seconds,
        "batches": [_timed(predictor.logits, _images(predictor, n), args.runs) for n in args.batch],
        "onnx_runtime": _onnx(args, predictor),
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n" if args.json else _as_text(result))
    return 0


def _onnx(args: argparse.Namespace, predictor: Predictor) -> dict[str, Any] | None:
    """The same for the exported network in ONNX Runtime; None if that or `onnx` is missing."""
    if not all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
        return None
    path = packed_file(args)
    try:
        data = export_onnx(
            read_packed(path), implementation=args.implementation, model=args.model, name=path
        )
    except UnsupportedOperationError as error:
        return {"error": str(error)}
    start = time.perf_counter()
    session = OnnxSession(data, path)
    return {
        "file_bytes": len(data),
        "load_seconds": time.perf_counter() - start,
        "batches": [_timed(session.logits, _images(predictor, n), args.runs) for n in args.batch],
    }


def _timed(call: Callable[[np.ndarray], Any], images: np.ndarray, num_runs: int) -> dict[str, Any]:
    """Times of the first call, which may compile, and quantiles of the later ones."""
    seconds = []
    for _ in range(num_runs + 1):
        start = time.perf_counter()
        call(images)
        seconds.append(time.perf_counter() - start)
    first, rest = seconds[0], seconds[1:]
    p50, p99 = np.percentile(rest, (50, 99)).tolist()
    return {
        "batch_size": len(images),
        "first_seconds": first,
        "p50_seconds": p50,
        "p99_seconds": p99,
        "images_per_second": len(images) / p50,
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
        *_rows(result["batches"]),
    ]
    if (other := result["onnx_runtime"]) is None:
        lines += ["", "ONNX Runtime    not timed: `pip install mlg-jax[onnx] onnxruntime`"]
    elif "error" in other:
        lines += ["", f"ONNX Runtime    not timed: {other['error']}"]
    else:
        lines += [
            "",
            "ONNX Runtime",
            f"file bytes      {other['file_bytes']:,}",
            f"load            {other['load_seconds']:.3f} s",
            *_rows(other["batches"]),
        ]
    return "\n".join(lines) + "\n"


def _rows(batches: Sequence[dict[str, Any]]) -> list[str]:
    """A table of the times."""
    rows = [
        f"{row['batch_size']:5}  {row['first_seconds']:12.3f}  {1e3 * row['p50_seconds']:10.3f}"
        f"  {1e3 * row['p99_seconds']:10.3f}  {row['images_per_second']:10.1f}"
        for row in batches
    ]
    return ["", "batch  first call s      p50 ms      p99 ms    images/s", *rows]
