"""The trained networks that `mlg compress` reads, and their images."""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlg_jax.cli._torch_options import read_network
from mlg_jax.config import ExperimentConfig, parse_config
from mlg_jax.data import Dataset, images_below, load_dataset
from mlg_jax.engine import ImagePreprocessing, Manifest, trained_network
from mlg_jax.export import SUFFIXES, read_packed
from mlg_jax.models import MODELS, create_model
from mlg_jax.train import CHECKPOINT_DIR, FINGERPRINT_FILE, CheckpointError, load_variables


class Trained(NamedTuple):
    """A network with its variables and what its file says of its images."""

    model: Any
    variables: dict[str, Any]
    preprocessing: ImagePreprocessing
    class_names: tuple[str, ...]
    dataset: Dataset | None  # only of a work directory


def read_trained(args: argparse.Namespace) -> Trained:
    """Reads a packed model, a PyTorch file, or a work directory.

    Raises:
        ValueError: it is none of them, or holds another network than the options say.
        FileNotFoundError: it does not exist.
    """
    path = Path(args.file)
    if path.name.endswith(SUFFIXES):
        return _from_torch(args)
    if args.model in MODELS:
        raise ValueError(
            f"`--model` must be MODULE:NAME or absent for what is not a PyTorch file; got "
            f"{args.model!r}."
        )
    if path.is_file():
        return _from_packed(args)
    return _from_work_dir(path)


def _from_torch(args: argparse.Namespace) -> Trained:
    if args.model not in MODELS:
        raise ValueError(
            f"`--model` must name the architecture of {args.file}, one of {sorted(MODELS)}; got "
            f"{'none' if args.model is None else args.model}."
        )
    model, variables, preprocessing = read_network(args)
    if preprocessing is None:
        raise ValueError(
            "`--mean` and `--std` must be given for a network with --stem cifar; got none."
        )
    return Trained(model, variables, preprocessing, (), None)


def _from_packed(args: argparse.Namespace) -> Trained:
    packed = read_packed(args.file)
    manifest = Manifest.of(packed, args.file)
    if manifest.preprocessing is None:
        raise ValueError(
            f"{args.file} must say how images are preprocessed; it does not. Import it again with "
            "--mean and --std."
        )
    model, variables = trained_network(packed, model=args.model, name=args.file)
    return Trained(model, variables, manifest.preprocessing, manifest.class_names, None)


def _from_work_dir(path: Path) -> Trained:
    config, directory = _find(path)
    try:
        params, state, _ = load_variables(directory)
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    dataset = load_dataset(config.data)
    chosen = config.teacher_model
    model = create_model(
        chosen.name, num_classes=dataset.num_classes, stem=chosen.stem, width=chosen.width
    )
    variables = {"params": params, **state}
    preprocessing = ImagePreprocessing.of(dataset)
    return Trained(model, variables, preprocessing, dataset.class_names, dataset)


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
        f"SOURCE must be a packed model, a PyTorch file, a work directory of launch.py or its "
        f"teacher's checkpoints; there is no {FINGERPRINT_FILE} of an experiment in {path} or its "
        "parents."
    )


def read_images(
    directory: str, preprocessing: ImagePreprocessing, num_images: int, num_held_out: int, seed: int
) -> tuple[jax.Array, jax.Array]:
    """Two disjoint random samples of the images below a directory, normalised.

    Returns:
        float32 `[N, H, W, C]` of at most `num_images`, and of at most `num_held_out` of the rest.

    Raises:
        ValueError: there is no image, or one cannot be read.
    """
    paths = images_below(directory)
    if not paths:
        raise ValueError(f"`--data` must be a directory with images below it; got {directory}.")
    order = np.random.default_rng(seed).permutation(len(paths))[: num_images + num_held_out]

    def read(rows: np.ndarray) -> jax.Array:
        if not len(rows):
            return jnp.zeros((0, *preprocessing.image_shape))
        return preprocessing.normalize(jnp.asarray(preprocessing.read([paths[i] for i in rows])))

    return read(order[:num_images]), read(order[num_images:])
