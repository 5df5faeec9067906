"""Compresses a trained network with one setting for all layers and with one chosen per layer.

    python launch.py --config=configs/cifar10_resnet18_narrow.py --workdir=runs/narrow
    python benchmarks/compress.py --run runs/narrow [--base-out 16 8] [--images 128] [--steps 48]

For each `--base-out`, the size of the published setting 2-Bo-3-6-3 is the budget. This setting is
compared with another uniform one (the largest Bo that fits) and with the allocation by measured
sensitivity. Each is projected in closed form and by least squares, gets running statistics from the
same training images, and is tested. The better uniform setting and the allocation are then
distilled for the same number of steps, each from its better projection.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from _measure import save

from mlg_jax import GenerationSpec, create_model, size_report
from mlg_jax.compress import (
    AllocationSpec,
    DistillationSpec,
    ProjectionSpec,
    allocate,
    distill,
    fit_generated,
    measure_sensitivity,
)
from mlg_jax.config import parse_config
from mlg_jax.data import load_dataset
from mlg_jax.train import load_variables

WEIGHT_BITS = 8
GLOBAL_SETTINGS = ((2, (3, 6, 3)), (4, (4, 4, 4)))  # Bi; widths of B, U, V
PROJECTIONS = (
    ProjectionSpec(method="svd"),
    ProjectionSpec(method="svd_l2", num_steps=300, learning_rate=2e-3),
)
BATCH_SIZE = 128


def calibration_images(dataset, count):
    """Normalised training images without augmentation."""
    batches = itertools.islice(dataset.train_batches(0), -(-count // dataset.spec.batch_size))
    normalize = dataset.preprocessing.normalize
    return np.concatenate([np.asarray(normalize(b["image"])) for b in batches])[:count]


def test_accuracy(model, variables, dataset):
    """Accuracy on all test images."""

    @jax.jit
    def count(batch):
        logits = model.apply(variables, dataset.preprocessing.normalize(batch["image"]))
        right = (jnp.argmax(logits, -1) == batch["label"]) & batch["mask"]
        return jnp.sum(right), jnp.sum(batch["mask"])

    counts = np.sum([jax.device_get(count(b)) for b in dataset.test_batches()], axis=0)
    return float(counts[0] / counts[1])


def kb_of(model, generation):
    """The size of the network with these kernels, in KB."""
    spec = dataclasses.replace(model.spec, generation=generation, weight_bits=WEIGHT_BITS)
    small = spec.create()
    shapes = jax.eval_shape(small.init, jax.random.key(0), jnp.zeros(small.input_shape))
    return size_report(small, shapes).kb


def largest_within(model, budget_kb, base_in, bits):
    """The uniform setting with the largest Bo that fits; None if none fits."""
    fitting = (
        spec
        for base_out in range(128, 0, -1)
        if kb_of(model, spec := GenerationSpec.from_bits(base_in, base_out, *bits)) <= budget_kb
    )
    return next(fitting, None)


def written(spec):
    """The setting as Bi-Bo-qb-qu-qv."""
    bits = (spec.basis.bits, spec.coeff_in.bits, spec.coeff_out.bits)
    return "-".join(map(str, (spec.base_in, spec.base_out, *bits)))


def main():
    """Prints one line per network and writes JSON after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=pathlib.Path, required=True, help="work directory with a trained teacher"
    )
    parser.add_argument(
        "--base-out",
        type=int,
        nargs="+",
        default=[16, 8],
        help="Bo of the published settings",
    )
    parser.add_argument("--images", type=int, default=128, help="images to measure sensitivity on")
    parser.add_argument("--steps", type=int, default=48, help="steps of distillation")
    args = parser.parse_args()

    config = parse_config(json.loads((args.run / "fingerprint.json").read_text()))
    dataset = load_dataset(config.data)
    params, state, _ = load_variables(args.run / "teacher" / "checkpoints")
    variables = {"params": params, **state}
    network = config.model
    model = create_model(
        network.name, num_classes=dataset.num_classes, stem=network.stem, width=network.width
    )
    images = calibration_images(dataset, args.steps * BATCH_SIZE)
    distillation = DistillationSpec(num_epochs=1, batch_size=BATCH_SIZE)
    results = {"steps": args.steps, "images": args.images, "networks": [], "allocations": {}}

    def note(**row):
        results["networks"].append(row)
        print(row, flush=True)
        save("compression", results)

    def fitted(budget_kb, name, generation):
        found = []
        for projection in PROJECTIONS:
            small, start = fit_generated(
                model,
                variables,
                images,
                generation=generation,
                weight_bits=WEIGHT_BITS,
                projection=projection,
                key=jax.random.key(0),
            )
            found.append((test_accuracy(small, start, dataset), name, small, start))
            row = {"kb": size_report(small, start).kb, "projection": projection.method}
            note(budget_kb=budget_kb, setting=name, **row, step=0, test_accuracy=found[-1][0])
        return max(found, key=lambda f: f[0])

    def distilled(budget_kb, name, small, start):
        trained = distill(
            small, start, model, variables, images, spec=distillation, key=jax.random.key(1)
        )
        size = size_report(small, trained).kb
        accuracy = test_accuracy(small, trained, dataset)
        note(budget_kb=budget_kb, setting=name, kb=size, step=args.steps, test_accuracy=accuracy)

    accuracy = test_accuracy(model, variables, dataset)
    note(
        budget_kb=None,
        setting="dense",
        kb=size_report(model, variables).kb,
        step=0,
        test_accuracy=accuracy,
    )
    sensitivity = measure_sensitivity(
        model, variables, images, spec=AllocationSpec(num_images=args.images)
    )
    for base_out in args.base_out:
        budget_kb = kb_of(model, GenerationSpec.from_bits(2, base_out, 3, 6, 3))
        allocation = allocate(sensitivity, target_kb=budget_kb)
        results["allocations"][f"{budget_kb:.2f}"] = allocation.rows
        ours = fitted(budget_kb, "by layer", allocation.generation)
        settings = (largest_within(model, budget_kb, *s) for s in GLOBAL_SETTINGS)
        uniform = [fitted(budget_kb, written(s), s) for s in settings if s is not None]
        for _, name, small, start in (ours, max(uniform, key=lambda u: u[0])):
            distilled(budget_kb, name, small, start)


if __name__ == "__main__":
    main()
