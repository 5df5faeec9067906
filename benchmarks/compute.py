"""Times forward passes and training steps: dense, and every generated implementation.

    python benchmarks/compute.py [--network resnet18 resnet50] [--forward 1 8 128]
                                 [--train 32 128] [--dtype float32] [--rounds 5]
                                 [--target h100]

ResNet-18 has the CIFAR stem and 32 x 32 images, ResNet-50 the ImageNet stem and 224 x 224 images.
Dense is plain Flax (`_plain.py`), for ResNet-18 also eager PyTorch if torch is installed. All
contestants of a row are compiled first and then timed in turns, so that disturbances affect all.

A run replaces only the rows that it measures in the JSON file. Multiply-adds are computed by
formula for one forward pass; "compiled_flops" is XLA's own count, in which the body of a loop
counts once. "stored" uses the factors without quantising them, as an inference model with factors
quantised in advance does; "quantised" quantises them in every call, as in training.
"""

import argparse
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
from train_step import training_step

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
    variables = jax.jit(model.init)(key, images[:1])
    if is_training:
        return training_step(model), (variables, images, jax.random.randint(key, (batch,), 0, 10))
    return lambda v, x: model.apply(v, x), (variables, images)


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


def torch_calls(network, is_training, batch, size):
    """PyTorch's dense ResNet-18 in eager mode, from pixels; empty if torch is not installed."""
    if network != "resnet18" or importlib.util.find_spec("torch") is None:
        return {}
    import torch
    from _torch_resnet import resnet18

    net = resnet18((0.5,) * 3, (0.25,) * 3)
    net = net.to(memory_format=torch.channels_last).train(is_training)
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    labels = torch.randint(0, 10, (batch,))
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)

    def forward():
        with torch.inference_mode():
            net(images)

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return {"dense, PyTorch": step if is_training else forward}


def interleaved_seconds(calls, num_rounds, min_seconds):
    """Median and quartiles of each call; the calls take turns."""
    for call in calls.values():
        jax.block_until_ready(call())
    times, start = {name: [] for name in calls}, time.perf_counter()
    while len(times["dense"]) < num_rounds or time.perf_counter() - start < min_seconds:
        for name, call in calls.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - begin)
    quartiles = {name: statistics.quantiles(t, n=4) for name, t in times.items()}
    return {
        name: {"median": q[1], "q1": q[0], "q3": q[2], "n": len(times[name])}
        for name, q in quartiles.items()
    }


def measure(network, is_training, batch, dtype, args):
    """Yields one row per contestant."""
    size = NETWORKS[network][4]
    rows, calls = {}, {}
    for name, model in contestants(network, dtype, is_training=is_training).items():
        if name != "dense" and args.only and name not in args.only:
            continue
        fn, arguments = call_of(model, is_training, batch, size, dtype)
        with tracing(model):
            program = jax.jit(fn).lower(*arguments).compile()
        rows[name] = {
            "compiled_flops": (program.cost_analysis() or {}).get("flops"),
            "bytes": compiled_bytes(program),
        }
        calls[name] = functools.partial(program, *arguments)
    calls |= torch_calls(network, is_training, batch, size)
    seconds = interleaved_seconds(calls, args.rounds, args.min_seconds)
    kind = "training step" if is_training else "forward"
    head = {"network": network, "pass": kind, "batch": batch, "dtype": args.dtype}
    for name, timing in seconds.items():
        row = rows.get(name, {"compiled_flops": None, "bytes": None})
        row["multiply_adds"] = multiply_adds_of(name, network, batch)
        share = timing["median"] / seconds["dense"]["median"]
        memory = "" if row["bytes"] is None else f"{row['bytes']['temporary'] / 2**20:.0f}"
        cells = (
            network,
            kind,
            str(batch),
            name,
            f"{1e3 * timing['median']:.1f}",
            f"{share:.2f}",
            f"{row['multiply_adds'] / 1e9:.2f}",
            memory,
        )
        print(table_row(cells), flush=True)
        yield {**head, "contestant": name, "seconds": timing, "of_dense": share, **row}


def compile_rows(network, is_training, batch, dtype, args):
    """Yields one row per contestant, compiled for `args.target`."""
    size, base = NETWORKS[network][4], None
    kind = "training step" if is_training else "forward"
    for name, model in contestants(network, dtype, is_training=is_training).items():
        if name != "dense" and args.only and name not in args.only:
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
    parser.add_argument("--cache", default=None, help="directory of compiled programs")
    parser.add_argument("--target", default=None, choices=list(TARGETS), help="GPU to compile for")
    parser.add_argument("--out", default=None, help="directory of the JSON file")
    args = parser.parse_args()
    if args.cache:
        jax.config.update("jax_compilation_cache_dir", args.cache)
    dtype = None if args.dtype == "float32" else jnp.dtype(args.dtype)
    print(table_head(TARGET_COLUMNS if args.target else COLUMNS, "llrlr"))
    measured_rows, results = compile_rows if args.target else measure, []
    for network in args.network:
        for is_training, batches in ((False, args.forward), (True, args.train)):
            for batch in batches:
                results += measured_rows(network, is_training, batch, dtype, args)
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
