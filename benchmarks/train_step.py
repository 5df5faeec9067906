"""Times a training step of ResNet-18 for CIFAR: generated kernels, dense kernels, plain Flax.

    python benchmarks/train_step.py [--batch 1 32 128] [--runs 7] [--dtype float32]

The three networks are compiled and timed in one process; ratios are relative to plain Flax.
"""

import argparse
import contextlib

import jax
import jax.numpy as jnp
from _measure import compiled_bytes, median_seconds, save
from _plain import is_plain, plain_layers, without_our_gradients

from mlg_jax import GenerationSpec, create_model
from mlg_jax._platform import traced_platform
from mlg_jax._tables import table_head, table_row
from mlg_jax.layers import layer_records, quantized_variables
from mlg_jax.models import BasicBlock, ResNet

COLUMNS = ("batch", "network", "ms", "vs Flax", "temporary MiB", "vs Flax", "parameters MiB")
PAPER = GenerationSpec.from_bits(2, 44, 3, 6, 3)


def networks(dtype):
    """The contestants by name, plain Flax first."""
    plain = ResNet(
        (2, 2, 2, 2),
        BasicBlock,
        num_classes=10,
        layers=plain_layers(dtype=dtype),
    )
    return {
        "flax": plain,
        "dense": create_model("resnet18", num_classes=10, dtype=dtype),
        "generated": create_model(
            "resnet18", num_classes=10, generation=PAPER, weight_bits=8, dtype=dtype
        ),
    }


def prepared(model, variables, images):
    """The variables as the trainer passes them: off CPUs, all factors are quantised together."""
    if is_plain(model) or traced_platform() == "cpu":
        return variables
    return quantized_variables(layer_records(model, images.shape), variables)


def training_step(model):
    """A step of SGD on cross-entropy, as a pure function of (variables, images, labels)."""

    def loss(params, stats, images, labels):
        variables = prepared(model, {"params": params, "batch_stats": stats}, images)
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        logits = logits.astype(jnp.float32)
        log_probability = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
        return -log_probability.mean(), updated["batch_stats"]

    def step(variables, images, labels):
        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(
            variables["params"], variables["batch_stats"], images, labels
        )
        params = jax.tree.map(lambda p, g: p - 1e-3 * g, variables["params"], gradients)
        return {"params": params, "batch_stats": stats}, value

    return step


def measure(model, batch, num_runs):
    """Time and bytes of one network at one batch size."""
    key = jax.random.key(0)
    images = jax.random.normal(key, (batch, 32, 32, 3))
    labels = jax.random.randint(key, (batch,), 0, 10)
    variables = jax.jit(model.init)(key, images[:1])
    tracing = without_our_gradients() if is_plain(model) else contextlib.nullcontext()
    with tracing:
        compiled = jax.jit(training_step(model)).lower(variables, images, labels).compile()
    parameter_bytes = sum(p.nbytes for p in jax.tree.leaves(variables["params"]))
    return {
        "seconds": median_seconds(lambda: compiled(variables, images, labels), num_runs=num_runs),
        "bytes": compiled_bytes(compiled) | {"parameters": parameter_bytes},
    }


def main():
    """Measures every network at every batch size and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 128], help="batch sizes")
    parser.add_argument("--runs", type=int, default=7, help="timed steps")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", default=None, help="directory of the JSON file")
    args = parser.parse_args()
    dtype = None if args.dtype == "float32" else jnp.dtype(args.dtype)
    results = []
    print(table_head(COLUMNS, "rlr"))
    for batch in args.batch:
        base = None
        for name, model in networks(dtype).items():
            row = measure(model, batch, args.runs)
            base = base or row
            results.append({"batch": batch, "network": name, "dtype": args.dtype} | row)
            seconds, temporary = row["seconds"]["median"], row["bytes"]["temporary"]
            cells = (
                str(batch),
                name,
                f"{1e3 * seconds:.1f}",
                f"{seconds / base['seconds']['median']:.2f}",
                f"{temporary / 2**20:.1f}",
                f"{temporary / base['bytes']['temporary']:.2f}",
                f"{row['bytes']['parameters'] / 2**20:.2f}",
            )
            print(table_row(cells), flush=True)
    path = save(f"train_step_{args.dtype}", results, *([args.out] if args.out else []))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
