"""Training memory and time of every checkpointing preset, compared with plain Flax.

    python benchmarks/memory.py [--model resnet18 ...] [--runs 0] [--capacity 0.6] [--batch N]
                                [--dtype float32] [--target h100 | --allocator] [--cache DIR]

Loss and gradient in one compiled program, one process per model. `flax` is the architecture from
Flax's layers; `flax, nn.remat` wraps every block in `nn.remat`, on a CPU with the compiler option
that keeps XLA from undoing it. All ratios are relative to `flax` in the same run. With `--runs 0`,
the default, programs are only compiled. Bitmaps have room for `--capacity` of the entries; images
are random.

With `--allocator`, for GPUs, the peak of the device's allocator is set beside the compiled bytes:
every policy runs in a process of its own, once to compile and once to be counted.

With `--target`, programs are compiled for a GPU that need not be there (`mlg_jax.memory.targets`).
Temporaries then leave out the workspaces of matrix libraries, and the table has the number of
kernels and the time that a roofline estimates.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
from _measure import RESULTS, compiled_bytes, environment, median_seconds
from _plain import CheckpointedBlocks, plain_layers, without_our_gradients
from _roofline import estimate

from mlg_jax import create_model
from mlg_jax._tables import table_head, table_row
from mlg_jax.memory import allocator_peak, compile_for
from mlg_jax.memory.targets import TARGETS
from mlg_jax.models import MODELS
from mlg_jax.remat import PRESETS, RematSpec

# stem, batch, image size
CASES = {
    "resnet18": ("cifar", 128, 32),
    "resnet50": ("imagenet", 16, 224),
    "resnet101": ("imagenet", 16, 224),
    "vgg16": ("imagenet", 16, 224),
    "mobilenet_v2": ("imagenet", 16, 224),
}
NUM_CLASSES = {"cifar": 10, "imagenet": 1000}
KEEPS_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}  # needed by jax 0.10 on CPU


def contestants(name, stem, capacity, dtype):
    """Yields name, model, context for tracing and compiler options of each contestant."""
    num_classes = NUM_CLASSES[stem]
    has_norm = stem == "cifar" or name not in ("vgg16", "alexnet", "squeezenet")
    plain = functools.partial(
        MODELS[name],
        num_classes=num_classes,
        stem=stem,
        width=1.0,
    )
    layers = plain_layers(has_norm=has_norm, dtype=dtype)
    checkpointed = plain_layers(has_norm=has_norm, dtype=dtype, remat=CheckpointedBlocks())
    yield "flax", plain(layers=layers), without_our_gradients(), {}
    options = KEEPS_BARRIERS if jax.default_backend() == "cpu" else {}
    yield "flax, nn.remat", plain(layers=checkpointed), without_our_gradients(), options
    for preset in PRESETS:
        remat = RematSpec(preset, capacity, on_overflow="silent")
        model = create_model(name, num_classes=num_classes, stem=stem, dtype=dtype, remat=remat)
        yield preset, model, contextlib.nullcontext(), {}


def gradient_step(model):
    """A compiled function that returns `((loss, updated statistics), gradients)`."""

    def loss(params, state, images, labels, key):
        rngs = {"quantize": key, "dropout": jax.random.fold_in(key, 1)}
        logits, updated = model.apply(
            {"params": params, **state}, images, train=True, mutable=list(state), rngs=rngs
        )
        log_probability = jax.nn.log_softmax(logits.astype(jnp.float32))[
            jnp.arange(len(labels)), labels
        ]
        return -log_probability.mean(), updated

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def arguments_of(model, shape):
    """The arguments of `gradient_step`, all but the key as shapes."""
    key = jax.random.key(0)
    variables = jax.eval_shape(model.init, key, shape)
    state = {k: v for k, v in variables.items() if k != "params"}
    labels = jax.ShapeDtypeStruct(shape.shape[:1], jnp.int32)
    return variables["params"], state, shape, labels, key


def measure(model, tracing, options, shape, args):
    """Bytes of the compiled program and, with `args.runs`, its time."""
    key = jax.random.key(0)
    with tracing:
        arguments = arguments_of(model, shape)
        if args.target:
            return compiled_for_target(args.target, gradient_step(model), arguments)
        compiled = gradient_step(model).lower(*arguments).compile(options)
    row = {"bytes": compiled_bytes(compiled)}
    if args.runs:
        images = jax.random.normal(key, shape.shape, shape.dtype)
        variables = jax.jit(model.init)(key, images[:1])
        state = {k: v for k, v in variables.items() if k != "params"}
        labels = jnp.zeros(shape.shape[:1], jnp.int32)
        call = functools.partial(compiled, variables["params"], state, images, labels, key)
        row["seconds"] = median_seconds(call, num_runs=args.runs)
        row["is_finite"] = all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(call()[1]))
    return row


def count_one(label, args):
    """Runs one policy once and prints, as JSON, its compiled bytes and the allocator's."""
    (name,) = args.model
    stem, batch, size = CASES[name]
    shape = jax.ShapeDtypeStruct((args.batch or batch, size, size, 3), jnp.dtype(args.dtype))
    for found, model, tracing, options in contestants(name, stem, args.capacity, shape.dtype):
        if found == label:
            with tracing:
                arguments = arguments_of(model, shape)
                compiled = gradient_step(model).lower(*arguments).compile(options)
            zeros = jax.tree.map(zero_of, arguments)
            peak = allocator_peak(lambda: compiled(*zeros))  # noqa: B023
            row = {"bytes": compiled_bytes(compiled)}
            print(json.dumps(row | {"allocator_bytes": peak and peak.call_bytes}))


def zero_of(x):
    """The argument itself, or zeros of its shape."""
    return jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x


def count_in_processes(labels, args):
    """What `count_one` prints, by label: the second run of each finds its program compiled."""
    with tempfile.TemporaryDirectory() as directory:
        environ = os.environ | {
            # In a region that grows, a chunk may exceed what was asked for by 128 MiB.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "true",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": str(0.8 / args.jobs),
            "JAX_COMPILATION_CACHE_DIR": args.cache or directory,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

        def count(label):
            command = [sys.executable, __file__, *sys.argv[1:], "--count-one", label]
            for _ in range(2):
                done = subprocess.run(
                    command, env=environ, check=True, stdout=subprocess.PIPE, text=True
                )
            return json.loads(done.stdout.splitlines()[-1])

        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            return dict(zip(labels, pool.map(count, labels), strict=True))


def compiled_for_target(target, step, arguments):
    """Bytes, kernels and estimated time of the program for a GPU that need not be there."""
    program = compile_for(target, step, *arguments)
    memory, estimated = program.memory, estimate(program)
    own = memory.temporary_bytes - memory.workspace_bytes
    return {
        "bytes": {
            "temporary": own,
            "workspace": memory.workspace_bytes,
            "arguments": memory.argument_bytes,
            "outputs": memory.output_bytes,
        },
        "kernels": estimated.num_kernels,
        "estimated_seconds": estimated.seconds,
    }


def cells_of(row, base):
    """The cells of a row of the table, relative to plain Flax."""

    def pair(value, reference, digits):
        return [f"{value:,.{digits}f}", f"{value / reference:.3f}"]

    cells = pair(row["bytes"]["temporary"] / 2**20, base["bytes"]["temporary"] / 2**20, 1)
    if "kernels" in row:
        cells += pair(row["kernels"], base["kernels"], 0)
        cells += pair(1e3 * row["estimated_seconds"], 1e3 * base["estimated_seconds"], 2)
    elif "allocator_bytes" in row:
        compiled = row["bytes"]["temporary"] + row["bytes"]["outputs"]
        counted = row["allocator_bytes"]
        cells.append(f"{compiled / 2**20:,.1f}")
        cells += ["", ""] if counted is None else pair(counted / 2**20, compiled / 2**20, 1)
    elif "seconds" in row:
        cells += pair(1e3 * row["seconds"]["median"], 1e3 * base["seconds"]["median"], 2)
    return cells


def columns(args):
    """The header of the table, which says how its numbers were obtained."""
    names = ["policy", "temporaries, compiled, MiB", "of Flax"]
    if args.target:
        return [*names, "kernels, compiled", "of Flax", "ms, estimated", "of Flax"]
    if args.allocator:
        return [*names, "with outputs", "allocator's peak, measured, MiB", "of compiled"]
    return [*names, "ms per step, measured", "of Flax"] if args.runs else names


def is_wanted(label, args):
    """Whether a policy was asked for."""
    return not args.policy or label in args.policy


def run_model(name, args):
    """Measures one model and prints its table."""
    stem, batch, size = CASES[name]
    batch = args.batch or batch
    dtype = jnp.dtype(args.dtype)
    shape = jax.ShapeDtypeStruct((batch, size, size, 3), dtype)
    results, base = [], None
    print(f"\n{name}, {size} x {size}, batch {batch}, {args.dtype}, {args.target or 'here'}\n")
    print(table_head(columns(args)))
    wanted = [c for c in contestants(name, stem, args.capacity, dtype) if is_wanted(c[0], args)]
    counted = count_in_processes([c[0] for c in wanted], args) if args.allocator else {}
    for label, model, tracing, options in wanted:
        row = counted.get(label) or measure(model, tracing, options, shape, args)
        base = base or row
        row["temporary_ratio"] = row["bytes"]["temporary"] / base["bytes"]["temporary"]
        cells = cells_of(row, base)
        results.append({"model": name, "batch": batch, "policy": label} | row)
        print(table_row((label, *cells)), flush=True)
    return results


def save(name, args, results):
    """Writes one JSON file per model and backend."""
    directory = pathlib.Path(args.out)
    directory.mkdir(parents=True, exist_ok=True)
    where = args.target or jax.default_backend()
    dtype = "" if args.dtype == "float32" else f"_{args.dtype}"
    what = "allocator" if args.allocator else "memory"
    path = directory / f"{what}_{name}{dtype}_{where}.json"
    content = {"environment": environment(), "target": args.target, "capacity": args.capacity}
    content["results"] = results
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nwritten to {path}")


def main():
    """Measures the models, each in its own process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument(
        "--policy", nargs="+", default=None, help="default: all; must start with flax"
    )
    parser.add_argument("--runs", type=int, default=0, help="timed steps; 0 only compiles")
    parser.add_argument("--batch", type=int, default=None, help="default: depends on the model")
    parser.add_argument("--capacity", type=float, default=0.6, help="of bitmaps, in (0, 1]")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--target", default=None, choices=list(TARGETS), help="GPU to compile for")
    parser.add_argument("--allocator", action="store_true", help="count the allocator's bytes too")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, with --allocator")
    parser.add_argument("--cache", default=None, help="directory of compiled programs")
    parser.add_argument("--count-one", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--out", default=str(RESULTS), help="directory of the JSON file")
    args = parser.parse_args()
    if args.count_one:
        count_one(args.count_one, args)
        return
    if args.cache and not args.allocator:
        jax.config.update("jax_compilation_cache_dir", args.cache)
    if len(args.model) == 1:
        save(args.model[0], args, run_model(args.model[0], args))
        return
    rest = [a for a in sys.argv[1:] if a != "--model" and a not in CASES]
    for name in args.model:
        subprocess.run([sys.executable, __file__, "--model", name, *rest], check=True)


if __name__ == "__main__":
    main()
