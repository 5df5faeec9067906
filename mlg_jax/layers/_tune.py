"""Measures (instead of predicting) the fastest implementation of each generated layer."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlg_jax._atomic import write_atomically
from mlg_jax._types import Array
from mlg_jax.kernels import Kernel, LayerRecord
from mlg_jax.layers._records import layer_records

MIN_RUNS, MIN_SECONDS, MAX_RUNS = 4, 0.03, 40
# On a GPU a call of a single layer takes less than starting it from Python.
REPEATS = {"cpu": 1, "gpu": 32}


def tune_implementations(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    is_training: bool = False,
    dtype: Any = jnp.float32,
    cache: str | Path | None = None,
) -> dict[str, str]:
    """Times every implementation of every generated layer on this machine; takes minutes.

    Args:
        model: a model from `create_model` or `generated`.
        input_shape: `[N, H, W, C]` as the model will be called; None takes the model's own.
        is_training: times forward and backward pass together; otherwise only the forward pass.
        dtype: of the computation.
        cache: a JSON file of timings, read if it exists and extended; a layer already timed on this
            kind of device with this version of JAX is not timed again.

    Returns:
        `{layer path: implementation}`, to be given to `create_model` as `implementation`.

    Raises:
        ValueError: `cache` is a file of something else.
    """
    known = _remembered(cache)
    best = {}
    for record in layer_records(model, input_shape, is_training=is_training):
        if record.implementation is None:
            continue
        key = _key(record, dtype, is_training)
        if key not in known:
            known[key] = time_implementations(record, dtype=dtype, is_training=is_training)
            if cache:
                Path(cache).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(cache, (json.dumps(known, indent=1) + "\n").encode())
        best[record.name] = min(known[key], key=known[key].__getitem__)
    return best


def time_implementations(
    record: LayerRecord, *, dtype: Any = jnp.float32, is_training: bool
) -> dict[str, float]:
    """Seconds of one generated layer by implementation: minima over runs that alternate."""
    return implementation_timer(record, dtype=dtype, is_training=is_training)()


def implementation_timer(
    record: LayerRecord, *, dtype: Any = jnp.float32, is_training: bool
) -> Callable[[], dict[str, float]]:
    """Compiles the programs of `time_implementations`; returns the function that times them."""
    kernel = record.kernel
    assert kernel is not None
    *keys, key = jax.random.split(jax.random.key(0), len(kernel.factors) + 1)
    factors = {
        factor.name: jax.random.normal(k, factor.shape)
        for factor, k in zip(kernel.factors, keys, strict=True)
    }
    x = jax.random.normal(key, record.input_shape, dtype)
    repeats = REPEATS.get(jax.default_backend(), 1)
    programs = {
        name: _compiled(name, factors, x, kernel, is_training, repeats)
        for name in kernel.implementations
    }

    def seconds() -> dict[str, float]:
        least = dict.fromkeys(programs, math.inf)
        start, num_runs = time.perf_counter(), 0
        while num_runs < MIN_RUNS or (
            time.perf_counter() - start < MIN_SECONDS and num_runs < MAX_RUNS
        ):
            for name, program in programs.items():
                begin = time.perf_counter()
                jax.block_until_ready(program(factors, x))
                if num_runs:  # the first run warms up
                    least[name] = min(least[name], (time.perf_counter() - begin) / repeats)
            num_runs += 1
        return least

    return seconds


def _compiled(
    name: str, factors: Any, x: Array, kernel: Kernel, is_training: bool, repeats: int
) -> Any:
    """A program that computes a layer `repeats` times, each after the one before."""

    def forward(factors: Any, x: Array) -> Array:
        return kernel.apply(factors, x, name)

    def both(factors: Any, x: Array) -> Any:
        y, pull = jax.vjp(forward, factors, x)
        return y, pull(y)

    once = both if is_training else forward
    fn = once if repeats == 1 else _repeated(once, repeats)
    return jax.jit(fn).lower(factors, x).compile()


def _repeated(fn: Any, repeats: int) -> Any:
    def step(_: Any, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        results, carry = jax.lax.optimization_barrier((fn(*carry), carry))
        factors, x = carry
        used = sum(jnp.ravel(r)[0].astype(x.dtype) for r in jax.tree.leaves(results))
        return factors, x.at[(0,) * x.ndim].set(used)

    return lambda factors, x: jax.lax.fori_loop(0, repeats, step, (factors, x))[1]


def _remembered(cache: str | Path | None) -> dict[str, dict[str, float]]:
    if cache is None or not Path(cache).exists():
        return {}
    try:
        known = json.loads(Path(cache).read_text())
    except ValueError:
        known = None
    if not isinstance(known, dict) or not all(isinstance(row, dict) for row in known.values()):
        raise ValueError(f"`cache` must be a file of timings or not exist yet; got {cache}.")
    return known


def _key(record: LayerRecord, dtype: Any, is_training: bool) -> str:
    """The key of a timing: everything that it depends on."""
    device = jax.devices()[0].device_kind
    assert record.kernel is not None
    shapes = [factor.shape for factor in record.kernel.factors]
    geometry = (record.shape, record.groups, record.strides, record.dilation, record.padding)
    kind = "training" if is_training else "forward"
    where = f"{device}, jax {jax.__version__}, {jnp.dtype(dtype).name}, {kind}"
    return f"{where}, {record.kernel.spec.kind}, {record.input_shape}, {shapes}, {geometry}"
