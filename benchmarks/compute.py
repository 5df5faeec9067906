"""Times forward passes and training steps: dense, and every generated implementation.

    python benchmarks/compute.py [--network resnet18 resnet50] [--forward 1 8 128]
                                 [--train 32 128] [--dtype float32] [--rounds 5]
                                 [--jobs 1] [--calls 1]
                                 [--target h100]

ResNet-18 has the CIFAR stem and 32 x 32 images, ResNet-50 the ImageNet stem and 224 x 224 images.
Dense is plain Flax (`_plain.py`), for ResNet-18 also PyTorch if torch is installed: channels last,
with `--dtype bfloat16` under autocast, on a GPU compiled with CUDA graphs. All programs are
compiled first (`--jobs` at a time), and those of a row are then timed in turns, so that
disturbances affect all. A timing is the mean of `--calls` calls that follow each other at once.

A run replaces only the rows that it measures in the JSON file. Multiply-adds are computed by
formula for one forward pass; "compiled_flops" is XLA's own count, in which the body of a loop
counts once. "stored" uses the factors without quantising them, as an inference model with factors
quantised in advance does; "quantised" quantises them in every call, as in training.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import importlib.util
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
from _measure import RESULTS, compiled_bytes, save
from _plain import is_plain, plain_layers, without_our_gradients
from _roofline import estimate
from train_step import prepared, training_step

from mlg_jax import GenerationSpec, create_model
from mlg_jax._tables import table_head, table_row
from mlg_jax.generation import cost_features
from mlg_jax.layers import layer_records
from mlg_jax.memory import compile_for
from mlg_jax.memory.targets import TARGETS
from mlg_jax.models import BasicBlock, BottleneckBlock, ResNet

NETWORKS = {
    "resnet18": ((2, 2, 2, 2), BasicBlock, "cifar", 10, 32),
    "resnet50": ((3, 4, 6, 3), BottleneckBlock, "imagenet", 1000, 224),
}
IMPLEMENTATIONS = ("generate", "factored_out", "factored", "auto")
COLUMNS = (
    "network",
    "pass",
    "batch",
    "contestant",
    "ms, measured",
    "of dense",
    "G multiply-adds",
    "temporary MiB, compiled",
)
TARGET_COLUMNS = (
    *COLUMNS[:4],
    "ms, estimated",
    "of dense",
    "kernels, compiled",
    "of dense",
)
QUANTISED = GenerationSpec.from_bits(2, 44, 3, 6, 3)
STORED = GenerationSpec.from_bits(2, 44)


def contestants(network, dtype, *, is_training):
    """Models by name, plain Flax first."""
    stages, block, stem, num_classes, _ = NETWORKS[network]
    layers = plain_layers(dtype=dtype)
    plain = ResNet(stages, block, num_classes=num_classes, stem=stem, layers=layers)
    create = functools.partial(
        create_model, network, num_classes=num_classes, stem=stem, dtype=dtype
    )
    models = {"dense": plain}
    for implementation in IMPLEMENTATIONS:
        quantised = create(generation=QUANTISED, weight_bits=8, implementation=implementation)
        models[f"{implementation}, quantised"] = quantised
        if not is_training:
            models[f"{implementation}, stored"] = create(
                generation=STORED, implementation=implementation
            )
    return models


def call_of(model, is_training, batch, size, dtype):
    """A function and its arguments: a training step or a forward pass."""
    key = jax.random.key(0)
    images = jax.random.normal(key, (batch, size, size, 3), dtype or jnp.float32)
    variables = initial_variables(model, images.shape)
    if is_training:
        return training_step(model), (variables, images, jax.random.randint(key, (batch,), 0, 10))
    return lambda v, x: model.apply(prepared(model, v, x), x), (variables, images)


_INITIAL = {}  # variables by their names and shapes, which most contestants share


def initial_variables(model, shape):
    """Random variables for images of a shape; contestants with equal ones share them."""
    example = jax.ShapeDtypeStruct((1, *shape[1:]), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example)
    name = str(jax.tree.leaves_with_path(shapes))
    if name not in _INITIAL:
        images = jnp.zeros(example.shape)
        _INITIAL[name] = jax.jit(model.init)(jax.random.key(0), images)
    return _INITIAL[name]


def tracing(model):
    """The context in which a model is traced."""
    return without_our_gradients() if is_plain(model) else contextlib.nullcontext()


def multiply_adds_of(name, network, batch):
    """Multiply-adds of the convolutions in one forward pass, by the cost model's formulas."""
    *_, stem, num_classes, size = NETWORKS[network]
    implementation = name.split(",")[0].replace("dense", "generate")
    model = create_model(
        network,
        num_classes=num_classes,
        stem=stem,
        generation=STORED,
        implementation=implementation,
    )
    total = 0
    for record in layer_records(model, (batch, size, size, 3)):
        if record.kind == "conv":
            features = cost_features(
                record.implementation, STORED.resolve(record.shape), record, is_training=False
            )
            if name.startswith("dense"):
                del features["building_multiply_adds"]
            total += sum(n for key, n in features.items() if key.endswith("multiply_adds"))
    return total


def torch_calls(network, is_training, batch, size, dtype):
    """PyTorch's dense ResNet-18, from pixels; empty if torch is not installed."""
    if network != "resnet18" or importlib.util.find_spec("torch") is None:
        return {}
    import torch
    from _torch_resnet import resnet18

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        return {}
    torch.backends.cudnn.benchmark = True
    net = resnet18((0.5,) * 3, (0.25,) * 3).to(device)
    net = net.to(memory_format=torch.channels_last).train(is_training)
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    precision = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def logits():
        with precision:
            return net(images)

    def loss():
        with precision:
            return torch.nn.functional.cross_entropy(net(images), labels)

    if device == "cuda":
        compile_for_gpu = functools.partial(torch.compile, mode="reduce-overhead", dynamic=False)
        logits, loss = compile_for_gpu(logits), compile_for_gpu(loss)

    def forward():
        with torch.inference_mode():
            logits()

    def step():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    call = step if is_training else forward
    try:
        call()
    except Exception as error:  # such as no compiler for torch.compile
        print(f"PyTorch is left out: {type(error).__name__}: {error}", flush=True)
        return {}
    return {"dense, PyTorch": call}


def wait_for(result):
    """Waits until a call has finished; PyTorch's calls return None."""
    jax.block_until_ready(result)
    if result is None and jax.default_backend() == "gpu":
        import torch

        torch.cuda.synchronize()


def interleaved_seconds(calls, args):
    """Median and quartiles of each call's time; the calls take turns."""
    for call in calls.values():
        for _ in range(3):  # PyTorch records its CUDA graphs in the second call
            wait_for(call())
    times, start = {name: [] for name in calls}, time.perf_counter()
    while len(times["dense"]) < args.rounds or time.perf_counter() - start < args.min_seconds:
        for name, call in calls.items():
            begin = time.perf_counter()
            for _ in range(args.calls):
                result = call()
            wait_for(result)
            times[name].append((time.perf_counter() - begin) / args.calls)
    quartiles = {name: statistics.quantiles(t, n=4) for name, t in times.items()}
    return {
        name: {"median": q[1], "q1": q[0], "q3": q[2], "n": len(times[name])}
        for name, q in quartiles.items()
    }


def is_wanted(name, args):
    """Whether a contestant was asked for; dense always is."""
    return name == "dense" or not args.only or name in args.only


def lowered_programs(network, is_training, batch, dtype, args):
    """Yields name, lowered program and arguments of every contestant."""
    for name, model in contestants(network, dtype, is_training=is_training).items():
        if is_wanted(name, args):
            fn, arguments = call_of(model, is_training, batch, NETWORKS[network][4], dtype)
            with tracing(model):
                yield name, jax.jit(fn).lower(*arguments), arguments


def measure_cases(cases, dtype, args):
    """Yields one row per case and contestant: everything is compiled before anything is timed."""
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        compiling = [
            {
                name: (pool.submit(lowered.compile), arguments)
                for name, lowered, arguments in lowered_programs(*case, dtype, args)
            }
            for case in cases
        ]
    for case, programs in zip(cases, compiling, strict=True):
        for name, (program, _) in programs.items():
            if program.exception():
                print(f"{case}, {name} does not compile: {program.exception()}", flush=True)
        done = {n: (p.result(), given) for n, (p, given) in programs.items() if not p.exception()}
        yield from time_case(*case, done, args)


def time_case(network, is_training, batch, programs, args):
    """Yields the rows of one network, pass and batch size."""
    calls = {
        name: functools.partial(program, *given) for name, (program, given) in programs.items()
    }
    calls |= torch_calls(network, is_training, batch, NETWORKS[network][4], args.dtype)
    seconds = interleaved_seconds(calls, args)
    kind = "training step" if is_training else "forward"
    for name, timing in seconds.items():
        row = {
            "network": network,
            "pass": kind,
            "batch": batch,
            "dtype": args.dtype,
            "contestant": name,
            "seconds": timing,
            "of_dense": timing["median"] / seconds["dense"]["median"],
            "compiled_flops": None,
            "bytes": None,
            "multiply_adds": multiply_adds_of(name, network, batch),
        }
        if name in programs:
            program = programs[name][0]
            row["compiled_flops"] = (program.cost_analysis() or {}).get("flops")
            row["bytes"] = compiled_bytes(program)
        memory = "" if row["bytes"] is None else f"{row['bytes']['temporary'] / 2**20:.0f}"
        cells = (
            network,
            kind,
            str(batch),
            name,
            f"{1e3 * timing['median']:.{1 if timing['median'] > 0.05 else 3}f}",
            f"{row['of_dense']:.2f}",
            f"{row['multiply_adds'] / 1e9:.2f}",
            memory,
        )
        print(table_row(cells), flush=True)
        yield row


def compile_rows(network, is_training, batch, dtype, args):
    """Yields one row per contestant, compiled for `args.target`."""
    size, base = NETWORKS[network][4], None
    kind = "training step" if is_training else "forward"
    for name, model in contestants(network, dtype, is_training=is_training).items():
        if not is_wanted(name, args):
            continue
        fn, arguments = call_of(model, is_training, batch, size, dtype)
        with tracing(model):
            program = compile_for(args.target, fn, *arguments)
        found = estimate(program)
        row = {
            "network": network,
            "pass": kind,
            "batch": batch,
            "dtype": args.dtype,
            "contestant": name,
            "estimated_seconds": found.seconds,
            "kernels": found.num_kernels,
            "moved_bytes": found.bytes,
            "library_flops": found.flops,
        }
        base = base or row
        row["of_dense"] = found.seconds / base["estimated_seconds"]
        row["kernels_of_dense"] = found.num_kernels / base["kernels"]
        cells = (f"{1e3 * found.seconds:.3f}", f"{row['of_dense']:.2f}")
        cells += (str(found.num_kernels), f"{row['kernels_of_dense']:.2f}")
        print(table_row((network, kind, str(batch), name, *cells)), flush=True)
        yield row


def row_key(row):
    """The key of rows that a new run replaces."""
    return row["network"], row["pass"], row["batch"]


def main():
    """Measures, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument(
        "--forward", type=int, nargs="*", default=[1, 8, 128], help="batch sizes of forward passes"
    )
    parser.add_argument(
        "--train", type=int, nargs="*", default=[32, 128], help="batch sizes of training steps"
    )
    parser.add_argument(
        "--only", nargs="+", help='contestants in addition to dense, such as "auto, stored"'
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5, help="minimum runs of each contestant")
    parser.add_argument("--min-seconds", type=float, default=1.0, help="minimum time per row")
    parser.add_argument("--calls", type=int, default=1, help="calls per timing")
    parser.add_argument("--jobs", type=int, default=1, help="programs compiled at the same time")
    parser.add_argument("--cache", default=None, help="directory of compiled programs")
    parser.add_argument("--target", default=None, choices=list(TARGETS), help="GPU to compile for")
    parser.add_argument("--out", default=None, help="directory of the JSON file")
    args = parser.parse_args()
    if args.cache:
        jax.config.update("jax_compilation_cache_dir", args.cache)
    dtype = None if args.dtype == "float32" else jnp.dtype(args.dtype)
    print(table_head(TARGET_COLUMNS if args.target else COLUMNS, "llrlr"))
    cases = [
        (network, is_training, batch)
        for network in args.network
        for is_training, batches in ((False, args.forward), (True, args.train))
        for batch in batches
    ]
    if args.target:
        results = [row for case in cases for row in compile_rows(*case, dtype, args)]
    else:
        results = list(measure_cases(cases, dtype, args))
    directory = pathlib.Path(args.out or RESULTS)
    where = args.target or jax.default_backend()
    path = directory / f"compute_{args.dtype}_{where}.json"
    measured = {row_key(row) for row in results}
    earlier = json.loads(path.read_text())["results"] if path.exists() else []
    results = [row for row in earlier if row_key(row) not in measured] + results
    save(f"compute_{args.dtype}", results, directory, where)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
