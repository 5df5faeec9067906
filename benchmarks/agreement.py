"""Trains under a policy and compares its gradients with those of the policy `none`.

    python benchmarks/agreement.py [--steps 300] [--every 30] [--policy bitmap_blocks]
    python benchmarks/agreement.py --width 0.25 --seeds 0 1 2 --curves none bitmap_blocks
    python benchmarks/agreement.py --draw

ResNet-18 on CIFAR-10 from tensorflow-datasets, batch 32, AdamW. Every `--every` steps, gradients of
`none` and of the policy are computed for the same batch and parameters; the difference is relative
to the largest entry. `--curves` instead trains with each policy separately and records losses and
test accuracy. `--draw` plots the loss curves, and memory against time with accuracy, from the
results of this script and of `memory.py`.
"""

import argparse
import collections
import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _measure import RESULTS, save

from mlg_jax import create_model
from mlg_jax.data import DataSpec, load_dataset
from mlg_jax.plots import plot_curves, plot_tradeoff
from mlg_jax.remat import RematSpec, choose_capacities, measure_densities


def loss_function(model):
    """Value and gradient of the mean cross-entropy, with updated statistics."""

    def loss(params, state, batch, key):
        logits, updated = model.apply(
            {"params": params, **state},
            batch["image"],
            train=True,
            mutable=list(state),
            rngs={"quantize": key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), updated

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def difference(got, wanted):
    """The largest difference between two trees, relative to the largest entry."""
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(wanted))
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs) / scale


def batches(dataset):
    """Endless normalised batches."""
    preprocessing = dataset.preprocessing
    for epoch in itertools.count():
        for index, batch in enumerate(dataset.train_batches(epoch, 0)):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), epoch), index)
            image = preprocessing.normalize(preprocessing.augment(key, batch["image"]))
            yield {**batch, "image": image}


def test_accuracy(dataset, model, params, state):
    """Share of the test images that are classified correctly."""

    @jax.jit
    def is_right(image, label):
        return jnp.argmax(model.apply({"params": params, **state}, image), axis=-1) == label

    right = [
        is_right(dataset.preprocessing.normalize(batch["image"]), batch["label"])[
            np.asarray(batch["mask"], bool)
        ]
        for batch in dataset.test_batches()
    ]
    return float(jnp.mean(jnp.concatenate(right)))


def run(args, seed, policy):
    """Trains with one seed and policy; returns losses, differences and test accuracy."""
    dataset = load_dataset(DataSpec(name="cifar10", batch_size=32, num_validation=0, seed=seed))
    model = create_model("resnet18", num_classes=10, width=args.width, remat="bitmap_units")
    variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 32, 32, 3)))
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    stream = batches(dataset)
    densities = jax.jit(functools.partial(measure_densities, model))(
        variables, next(stream)["image"]
    )
    capacities = choose_capacities(densities, margin=0.5)
    kept = model.clone(remat=RematSpec(policy).with_capacities(capacities))
    gradient, plain = (loss_function(m) for m in (kept, model.clone(remat=RematSpec("none"))))
    optimizer = optax.adamw(1e-3)
    opt_state = jax.jit(optimizer.init)(params)
    update = jax.jit(optimizer.update)
    losses, found, num_overflows = [], [], 0
    for step, batch in enumerate(itertools.islice(stream, args.steps), 1):
        key = jax.random.fold_in(jax.random.key(seed), step)
        (value, new_state), grads = gradient(params, state, batch, key)
        is_exact = not bool(jnp.all(jnp.isfinite(jax.tree.leaves(grads)[0])))
        if is_exact or (not args.curves and step % args.every == 0):
            (_, new_state), wanted = plain(params, state, batch, key)
            if is_exact:
                num_overflows, grads = num_overflows + 1, wanted
            else:
                found.append({"step": step, "difference": difference(grads, wanted)})
                print(f"seed {seed} step {step} loss {float(value):.4f} {found[-1]}", flush=True)
        updates, opt_state = update(grads, opt_state, params)
        params, state = optax.apply_updates(params, updates), new_state
        losses.append(round(float(value), 5))
    print(f"{policy}, seed {seed}: last 20 losses {np.mean(losses[-20:]):.4f}", flush=True)
    accuracy = test_accuracy(dataset, model, params, state) if args.curves else None
    print(f"{policy}, seed {seed}: test accuracy {accuracy}", flush=True)
    return {
        "policy": policy,
        "seed": seed,
        "test_accuracy": accuracy,
        "losses": losses,
        "differences": found,
        "num_overflows": num_overflows,
        "densities": {name: float(value) for name, value in densities.items()},
    }


def draw():
    """Draws `loss_curves.png` and `memory_time_accuracy.png` into docs/images."""
    images = pathlib.Path(__file__).parent.parent / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    runs = json.loads((RESULTS / "agreement_curves_cpu.json").read_text())["results"]
    curves = {f"{run['policy']}, seed {run['seed']}": smooth(run["losses"]) for run in runs}
    plot_curves(images / "loss_curves.png", curves)
    accuracies = collections.defaultdict(list)
    for run in runs:
        accuracies[run["policy"]].append(100 * run["test_accuracy"])
    rows = json.loads((RESULTS / "memory_resnet18_cpu.json").read_text())["results"]
    points = {}
    for row in rows:
        found = accuracies.get(row["policy"])
        label = f", {np.mean(found):.1f} ± {np.std(found):.1f} %" if found else ""
        points[row["policy"] + label] = (row["seconds"]["median"], row["bytes"]["temporary"])
    plot_tradeoff(images / "memory_time_accuracy.png", points)


def smooth(losses, width=10):
    """Means over `width` steps, in the format of metrics files."""
    means = np.reshape(losses[: len(losses) // width * width], (-1, width)).mean(axis=1)
    return [
        {"kind": "train", "step": width * (i + 1), "loss": loss} for i, loss in enumerate(means)
    ]


def main():
    """Runs every seed and policy and writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--every", type=int, default=30, help="steps between comparisons")
    parser.add_argument("--policy", default="bitmap_blocks", help="policy to compare with none")
    parser.add_argument("--width", type=float, default=1.0, help="factor on all channel counts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run per seed")
    parser.add_argument("--curves", nargs="+", metavar="POLICY", help="train each policy alone")
    parser.add_argument("--draw", action="store_true", help="only draw the figures")
    args = parser.parse_args()
    if args.draw:
        return draw()
    policies = args.curves or (args.policy,)
    results = [run(args, seed, policy) for seed in args.seeds for policy in policies]
    path = save("agreement_curves" if args.curves else "agreement", results)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
