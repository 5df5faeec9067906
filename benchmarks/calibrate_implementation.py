"""Times every implementation for each layer shape of the models; fits the cost model of `auto`.

    python benchmarks/calibrate_implementation.py [--measure] [--max-gflop 1] [--every 1]
        [--network resnet18 ...] [--jobs 1] [--keep] [--dtype float32] [--backend cpu]
        [--cache DIR] [--out DIR]

`--measure` times one layer at a time, forward and training, and writes
`results/implementations_DTYPE_BACKEND.json`; without it, that file is read.

For a CPU, the seconds per unit of each feature are then fitted by non-negative least squares on
relative errors. The script updates `mlg_jax/generation/_costs.json`, draws a figure, and prints how
far the model's choices are from the fastest ones. For a GPU, whose model is a roofline with three
rates, the choices of that roofline are compared with the fastest ones.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from _measure import RESULTS, save
from scipy.optimize import nnls

from mlg_jax import GenerationSpec, create_model
from mlg_jax._types import KernelShape, LayerGeometry
from mlg_jax.generation import FactorShapes, multiply_adds
from mlg_jax.generation._choose import cheapest, cost_features, cost_kind, least_estimated
from mlg_jax.kernels import GeneratedKernel
from mlg_jax.layers import implementation_timer, layer_records
from mlg_jax.plots import plot_speedups

ROOT = pathlib.Path(__file__).parent.parent
COSTS = ROOT / "mlg_jax" / "generation" / "_costs.json"
PICTURE = ROOT / "docs" / "images" / "speedups.png"
NAMES = ("resnet18", "resnet50", "mobilenet_v2", "squeezenet", "alexnet", "vgg16")
SPECS = {"mobilenet_v2": GenerationSpec(5, 40)}


def layers(networks):
    """One record for each distinct generated convolution in the models."""
    found = {}
    for name, (stem, size) in itertools.product(networks, (("cifar", 32), ("imagenet", 224))):
        spec = SPECS.get(name, GenerationSpec(2, 44))
        model = create_model(name, num_classes=10, stem=stem, generation=spec)
        for r in layer_records(model, (1, size, size, 3)):
            if isinstance(r.kernel, GeneratedKernel):
                bare = dataclasses.replace(r.kernel.layer, path=())
                found.setdefault(bare, r)
    return list(found.values())


def batches(record, max_gflop):
    """Batch size 1, and the largest one within the limit."""
    positions = math.prod(record.input_shape[1:3]) / math.prod(record.strides)
    sample = 2e-9 * positions * record.shape.size
    fitting = [n for n in (8, 32, 128) if n * sample <= max_gflop]
    return (1, *fitting[-1:])


def with_batch(record, n):
    """The record of the same layer, called with n samples."""
    shape = (n, *record.input_shape[1:])
    layer = dataclasses.replace(record.kernel.layer, input_shape=shape)
    kernel = dataclasses.replace(record.kernel, layer=layer)
    return dataclasses.replace(record, input_shape=shape, kernel=kernel)


def measure(args):
    """One row per layer, batch and pass; training with the larger batch only."""
    dtype = jnp.dtype(args.dtype)
    todo = [
        (with_batch(record, n), is_training)
        for record in layers(args.network)[:: args.every]
        for is_training in (False, True)
        for n in batches(record, args.max_gflop)[-1 if is_training else 0 :]
    ]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        step = 1 if args.jobs == 1 else len(todo)  # nothing is timed while another compiles
        for first in range(0, len(todo), step):
            if first % 50 == 0:
                print(f"{first} of {len(todo)}: {todo[first][0].name}", flush=True)
            some = todo[first : first + step]
            timers = pool.map(
                lambda t: implementation_timer(t[0], dtype=dtype, is_training=t[1]), some
            )
            for (record, is_training), timer in zip(some, list(timers), strict=True):
                yield row_of(record, is_training, timer())


def row_of(record, is_training, seconds):
    """The row of a layer in the JSON file."""
    return {
        "layer": record.name,
        "is_training": is_training,
        "kernel": [record.shape.out_channels, record.shape.in_channels],
        "window": record.shape.window,
        "groups": record.groups,
        "strides": record.strides,
        "padding": record.padding,
        "input_shape": record.input_shape,
        "factors": {f.name: f.shape for f in record.kernel.factors},
        "seconds": seconds,
    }


def read(row):
    """The layer and the factor shapes of a row."""
    record = LayerGeometry(
        (),
        "conv",
        KernelShape(*row["kernel"], tuple(row["window"])),
        groups=row["groups"],
        strides=tuple(row["strides"]),
        padding=tuple(map(tuple, row["padding"])),
        input_shape=tuple(row["input_shape"]),
    )
    shapes = (row["factors"].get(name) for name in FactorShapes._fields)
    return record, FactorShapes(*(shape and tuple(shape) for shape in shapes))


def fit(rows):
    """Seconds per unit of each feature, and relative errors of all timings, by setting and kind."""
    samples = collections.defaultdict(list)
    for row in rows:
        record, shapes = read(row)
        setting = "training" if row["is_training"] else "forward"
        for implementation, seconds in row["seconds"].items():
            features = cost_features(implementation, shapes, record, is_training=row["is_training"])
            samples[setting, cost_kind(implementation, record)].append((features, seconds))
    costs, errors = collections.defaultdict(dict), {}
    for (setting, kind), pairs in sorted(samples.items()):
        names = list(pairs[0][0])
        matrix = np.array([[f[n] / t for n in names] for f, t in pairs])
        scale = matrix.max(axis=0) + 1e-30  # the solver needs columns of similar size
        solution = nnls(matrix / scale, np.ones(len(pairs)))[0] / scale
        costs[setting][kind] = dict(zip(names, map(float, solution), strict=True))
        errors[setting, kind] = np.abs(matrix @ solution - 1)
    return costs, errors


def regrets(rows, choose):
    """Excess time of the chosen implementation over the fastest, with its row, worst first."""
    found = []
    for row in rows:
        chosen = choose(*reversed(read(row)), is_training=row["is_training"])
        seconds = row["seconds"]
        fastest = min(seconds, key=seconds.__getitem__)
        found.append((seconds[chosen] / seconds[fastest] - 1, row, chosen, fastest))
    return sorted(found, key=lambda f: f[0], reverse=True)


def fitted(costs):
    """The choice by fitted costs."""

    def choose(shapes, record, is_training):
        setting = "training" if is_training else "forward"
        return cheapest(shapes, record, costs[setting], is_training=is_training)

    return choose


def held_out_regrets(rows, num_folds=5):
    """Regrets under cross-validation: each fold is predicted by a fit to the others."""
    layers = sorted({row["layer"] for row in rows})
    found = []
    for fold in range(num_folds):
        held_out = set(layers[fold::num_folds])
        costs, _ = fit([row for row in rows if row["layer"] not in held_out])
        found += regrets([row for row in rows if row["layer"] in held_out], fitted(costs))
    return found


def summary_of(found):
    """One line that summarises the choices."""
    num_near = sum(regret <= 0.1 for regret, *_ in found)
    spent = sum(row["seconds"][chosen] for _, row, chosen, _ in found)
    least = sum(row["seconds"][fastest] for _, row, _, fastest in found)
    return (
        f"{num_near} of {len(found)} choices within 10 % of the fastest; "
        f"total time {spent / least - 1:.1%} above the optimum"
    )


def speedups(rows):
    """`{implementation: [(ratio of multiply-adds, speed-up), ...]}`, relative to `generate`."""
    points = collections.defaultdict(list)
    for row in rows:
        record, shapes = read(row)
        kind = "training" if row["is_training"] else "forward"
        for implementation in set(row["seconds"]) - {"generate"}:
            saving = multiply_adds("generate", shapes, record) / multiply_adds(
                implementation, shapes, record
            )
            speedup = row["seconds"]["generate"] / row["seconds"][implementation]
            points[f"{implementation}, {kind}"].append((saving, speedup))
    return dict(sorted(points.items()))


def main():
    """Measures if requested, fits, writes the costs and prints the regrets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="time the layers first")
    parser.add_argument("--max-gflop", type=float, default=1.0, help="limit on the larger batch")
    parser.add_argument("--network", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--jobs", type=int, default=1, help="layers compiled at the same time")
    parser.add_argument("--keep", action="store_true", help="leave the costs of the package alone")
    parser.add_argument("--every", type=int, default=1, help="time only every n-th layer")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--backend", default=None, help="of the file to read; default: the present")
    parser.add_argument("--cache", default=None, help="directory of compiled programs")
    parser.add_argument("--out", default=str(RESULTS), help="directory of the JSON file")
    args = parser.parse_args()
    if args.cache:
        jax.config.update("jax_compilation_cache_dir", args.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    backend, directory = args.backend or jax.default_backend(), pathlib.Path(args.out)
    if args.measure:
        rows = list(measure(args))
        save(f"implementations_{args.dtype}", rows, directory)
    path = directory / f"implementations_{args.dtype}_{backend}.json"
    measured, table = json.loads(path.read_text()), json.loads(COSTS.read_text())
    if backend in table["estimated"]:
        rates = table["estimated"][backend]
        choose = functools.partial(least_estimated, rates=rates, dtype=jnp.dtype(args.dtype))
        print_regrets("by the roofline", regrets(measured["results"], choose))
        return
    costs, errors = fit(measured["results"])
    for (setting, kind), off in errors.items():
        print(f"{setting}, {kind}: {len(off)} timings, median error {np.median(off):.0%}")
    if not args.keep:
        table["environment"][backend] = measured["environment"]
        prefix = f"{backend}, {args.dtype}"
        table["seconds"] |= {f"{prefix}, {setting}": kinds for setting, kinds in costs.items()}
        COSTS.write_text(json.dumps(table, indent=1) + "\n")
        PICTURE.parent.mkdir(exist_ok=True)
        plot_speedups(PICTURE, speedups(measured["results"]))
    print(f"cross-validated: {summary_of(held_out_regrets(measured['results']))}")
    print_regrets("fitted to all layers", regrets(measured["results"], fitted(costs)))


def print_regrets(title, found):
    """The summary, and every choice that costs more than a tenth."""
    print(f"{title}: {summary_of(found)}")
    for regret, row, chosen, fastest in found:
        if regret <= 0.1:
            break
        shape = row["input_shape"]
        kind = "training" if row["is_training"] else "forward"
        times = {e: round(1e3 * s, 3) for e, s in row["seconds"].items()}
        print(f"+{regret:.0%} {kind} {row['layer']} {shape}: {chosen}, not {fastest}; ms {times}")


if __name__ == "__main__":
    main()
