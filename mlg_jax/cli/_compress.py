"""Compress a trained network to a file of a given number of kilobytes."""

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlg_jax.cli._options import linen_module
from mlg_jax.cli._sources import Trained, read_images, read_trained
from mlg_jax.cli._text import add_json_argument, output_file, positive_integer
from mlg_jax.cli._torch_options import add_network_arguments, add_preprocessing_arguments
from mlg_jax.compress import Compressed, DistillationSpec, LayerChoices, compress, compressible
from mlg_jax.data import Dataset
from mlg_jax.engine import save_packed
from mlg_jax.export import SUFFIXES
from mlg_jax.layers import forward
from mlg_jax.models import MODELS

NAME = "compress"

_BATCH_SIZE = 128
_NUM_HELD_OUT = 1000  # images on which both networks are compared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The network, its budget, the images and the distillation."""
    parser.add_argument(
        "file",
        metavar="SOURCE",
        help="a trained network: a packed model (.mlg), a PyTorch state dict "
        f"({', '.join(SUFFIXES)}), a work directory of launch.py, or the directory of its "
        "teacher's checkpoints",
    )
    parser.add_argument(
        "--target-kb",
        type=float,
        required=True,
        metavar="N",
        help="maximum size of the file in KB of 1024 bytes",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="directory with images, also in sub-directories, like those that the network is for; "
        "labels are not needed (default: the training images of a work directory)",
    )
    parser.add_argument(
        "--output",
        type=output_file,
        default="compressed.mlg",
        metavar="FILE",
        help="packed model to write (default: compressed.mlg)",
    )
    parser.add_argument(
        "--images",
        type=positive_integer,
        default=1024,
        metavar="N",
        help="number of images to measure, calibrate and distill on (default: 1024)",
    )
    parser.add_argument(
        "--distill-epochs",
        type=int,
        default=0,
        metavar="N",
        help="epochs of distillation over these images (default: 0, no distillation)",
    )
    parser.add_argument(
        "--float-bits",
        type=int,
        default=16,
        choices=(16, 32),
        help="bits of an entry of what is not quantised, such as the statistics of norms "
        "(default: 16)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    parser.add_argument(
        "--model",
        type=_network,
        metavar="NAME",
        help=f"architecture of a PyTorch file: {', '.join(sorted(MODELS))}; or MODULE:NAME, the "
        "Flax Linen module of a packed model that needs it",
    )
    add_network_arguments(parser)
    add_json_argument(parser)
    add_preprocessing_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Compresses and saves the network; prints the chosen setting of each layer and its size."""
    source = read_trained(args)
    images, held_out = _images(args, source)
    metrics: dict[str, float] = {}

    @functools.cache
    def before() -> tuple[dict[str, float], np.ndarray]:
        network = source.model, source.variables
        return _validated(source.dataset, *network), _classes(*network, held_out)

    def save(path: str | Path, small: nn.Module, variables: Any) -> int:
        return save_packed(
            path,
            small,
            variables,
            preprocessing=source.preprocessing,
            class_names=source.class_names,
            metrics=metrics,
            float_bits=args.float_bits,
        )

    def num_bytes(small: nn.Module, variables: Any) -> int:
        """Of the file, with the metrics that it will hold."""
        accuracy, classes = before()
        metrics.update(_validated(source.dataset, small, variables))
        metrics.update({f"{name}_before": value for name, value in accuracy.items()})
        if len(held_out):
            metrics["agreement"] = float(np.mean(_classes(small, variables, held_out) == classes))
        with tempfile.TemporaryDirectory() as directory:
            return save(Path(directory) / "model.mlg", small, variables)

    small = compress(
        source.model,
        source.variables,
        images,
        target_kb=args.target_kb,
        key=jax.random.key(args.seed),
        distillation=DistillationSpec(
            num_epochs=args.distill_epochs, batch_size=min(_BATCH_SIZE, len(images))
        )
        if args.distill_epochs
        else None,
        num_bytes=num_bytes,
        on_report=_reporter(source, images),
    )
    file_bytes = save(args.output, small.model, small.variables)
    result = {"file": args.output, "file_bytes": file_bytes, "weights_kb": small.allocation.kb}
    _write(result | metrics, small, is_json=args.json)
    return 0


def _images(args: argparse.Namespace, source: Trained) -> tuple[jax.Array, np.ndarray]:
    """Normalised images to compress with, and others on which both networks are compared."""
    if args.data is not None:
        samples = args.images, _NUM_HELD_OUT, args.seed
        images, held_out = read_images(args.data, source.preprocessing, *samples)
        return images, np.asarray(held_out)
    if source.dataset is None:
        raise ValueError(
            "`--data` must be a directory with images; only a work directory has its own; got none."
        )
    images = source.dataset.normalized_images(args.images)
    return images, np.asarray(images[:0])


def _network(text: str) -> str | nn.Module:
    """Converts `--model`."""
    return text if text in MODELS else linen_module(text)


def _validated(dataset: Dataset | None, model: nn.Module, variables: Any) -> dict[str, float]:
    """Accuracy on the validation images, if there are any; the test set is not read."""
    if dataset is None or not dataset.num_validation:
        return {}
    run, num_right = _classifier(model), 0
    for batch in dataset.validation_batches():
        classes = run(variables, dataset.preprocessing.normalize(batch["image"]))
        num_right += int(jnp.sum((classes == batch["label"]) & batch["mask"]))
    return {"validation_accuracy": num_right / dataset.num_validation}


def _classes(model: nn.Module, variables: Any, images: np.ndarray) -> np.ndarray:
    """The most probable class of each normalised image."""
    if not len(images):
        return np.zeros(0, np.int32)
    run = _classifier(model)
    batches = np.array_split(images, -(-len(images) // _BATCH_SIZE))
    return np.concatenate([np.asarray(run(variables, batch)) for batch in batches])


def _classifier(model: nn.Module) -> Callable[[Any, Any], jax.Array]:
    """The compiled function from variables and normalised images to classes."""
    apply = forward(model, train=False)
    return jax.jit(lambda variables, images: jnp.argmax(apply(variables, images), -1))


def _reporter(source: Trained, images: jax.Array) -> Callable[[LayerChoices], None]:
    """Writes a line for each measured layer, with the time that the others will take."""
    total, started = len(compressible(source.model, images)), time.monotonic()
    done: list[str] = []

    def report(layer: LayerChoices) -> None:
        done.append(layer.name)
        seconds = (time.monotonic() - started) / len(done) * (total - len(done))
        sys.stderr.write(
            f"measured layer {len(done)} of {total}, {layer.name}: {len(layer.choices)} choices; "
            f"{seconds:.0f} s left\n"
        )

    sys.stderr.write(f"measuring {total} layers on {len(images)} images\n")
    return report


def _write(result: dict[str, Any], small: Compressed, *, is_json: bool) -> None:
    layers = small.allocation.rows
    if is_json:
        sys.stdout.write(json.dumps({**result, "layers": layers}, indent=1) + "\n")
        return
    lines = [small.allocation.to_markdown(), ""]
    lines += [f"{name.replace('_', ' '):28} {value}" for name, value in result.items()]
    sys.stdout.write("\n".join(lines) + "\n")
