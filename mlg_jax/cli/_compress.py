"""Compress a trained network to a given number of kilobytes and write a packed model."""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlg_jax.cli._text import add_json_argument, positive_integer
from mlg_jax.compress import Compressed, DistillationSpec, LayerChoices, compress
from mlg_jax.config import ExperimentConfig, parse_config
from mlg_jax.data import Dataset, load_dataset
from mlg_jax.engine import ImagePreprocessing, save_packed
from mlg_jax.models import create_model
from mlg_jax.train import CHECKPOINT_DIR, FINGERPRINT_FILE, CheckpointError, load_variables

NAME = "compress"

_BATCH_SIZE = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The network, its budget, the images and the distillation."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="work directory of launch.py, or the directory of its teacher's checkpoints",
    )
    parser.add_argument(
        "--target-kb",
        type=float,
        required=True,
        metavar="N",
        help="maximum size of the weights in KB of 1024 bytes; running statistics add to the file",
    )
    parser.add_argument(
        "--output",
        default="compressed.mlg",
        metavar="FILE",
        help="packed model to write (default: compressed.mlg)",
    )
    parser.add_argument(
        "--images",
        type=positive_integer,
        default=1024,
        metavar="N",
        help="number of training images to measure, calibrate and distill on (default: 1024)",
    )
    parser.add_argument(
        "--distill-epochs",
        type=int,
        default=0,
        metavar="N",
        help="epochs of distillation over these images (default: 0, no distillation)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Compresses and saves the network; prints the chosen setting of each layer and its size."""
    config, directory = _find(Path(args.checkpoint))
    variables = _variables(directory)
    dataset = load_dataset(config.data)
    model = create_model(
        config.model.name,
        num_classes=dataset.num_classes,
        stem=config.model.stem,
        width=config.model.width,
    )
    epochs, images = args.distill_epochs, dataset.normalized_images(args.images)
    small = compress(
        model,
        variables,
        images,
        target_kb=args.target_kb,
        key=jax.random.key(args.seed),
        distillation=DistillationSpec(num_epochs=epochs, batch_size=min(_BATCH_SIZE, len(images)))
        if epochs
        else None,
        on_report=_report,
    )
    metrics = {}
    if dataset.num_validation:
        metrics = {
            "validation_accuracy": _accuracy(small.model, small.variables, dataset),
            "validation_accuracy_before": _accuracy(model, variables, dataset),
        }
    mean, std = dataset.preprocessing.mean, dataset.preprocessing.std
    height, width, _ = dataset.image_shape
    file_bytes = save_packed(
        args.output,
        small.model,
        small.variables,
        preprocessing=ImagePreprocessing(image_size=(height, width), mean=mean, std=std),
        class_names=dataset.class_names,
        metrics=metrics,
    )
    result = {"file": args.output, "file_bytes": file_bytes, "weights_kb": small.allocation.kb}
    _write(result | metrics, small, is_json=args.json)
    return 0


def _find(path: Path) -> tuple[ExperimentConfig, Path]:
    """The experiment's configuration and the directory of its teacher's checkpoints."""
    for work_dir in (path, *itertools.islice(path.absolute().parents, 2)):
        file = work_dir / FINGERPRINT_FILE
        tree = json.loads(file.read_text()) if file.is_file() else {}
        if "student" not in tree:  # the file of a single stage
            continue
        config = parse_config(tree)
        if work_dir != path:
            return config, path if path.name == CHECKPOINT_DIR else path / CHECKPOINT_DIR
        given = config.teacher.checkpoint
        return config, Path(given) if given else path / "teacher" / CHECKPOINT_DIR
    raise ValueError(
        f"`checkpoint` must be a work directory of launch.py or its teacher's checkpoints; there "
        f"is no {FINGERPRINT_FILE} of an experiment in {path} or its parents."
    )


def _variables(directory: Path) -> dict[str, Any]:
    try:
        params, state, _ = load_variables(directory)
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    return {"params": params, **state}


def _accuracy(model: nn.Module, variables: Any, dataset: Dataset) -> float:
    """Validation accuracy; the test set is not read."""

    @jax.jit
    def num_right(batch: Any) -> jax.Array:
        image = dataset.preprocessing.normalize(batch["image"])
        logits: Any = model.apply(variables, image)
        return jnp.sum((jnp.argmax(logits, -1) == batch["label"]) & batch["mask"])

    return sum(int(num_right(b)) for b in dataset.validation_batches()) / dataset.num_validation


def _report(layer: LayerChoices) -> None:
    sys.stderr.write(f"measured {layer.name}: {len(layer.choices)} choices\n")


def _write(result: dict[str, Any], small: Compressed, *, is_json: bool) -> None:
    layers = small.allocation.rows
    if is_json:
        sys.stdout.write(json.dumps({**result, "layers": layers}, indent=1) + "\n")
        return
    lines = [small.allocation.to_markdown(), ""]
    lines += [f"{name.replace('_', ' '):28} {value}" for name, value in result.items()]
    sys.stdout.write("\n".join(lines) + "\n")
