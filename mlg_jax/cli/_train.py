"""Train a small network for the classes of an image folder, and write a packed model."""

import argparse
import logging
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mlg_jax._atomic import write_atomically
from mlg_jax._image_files import header_size
from mlg_jax.cli._text import output_file, positive_integer
from mlg_jax.config import parse_config
from mlg_jax.data import KNOWN_STATISTICS, images_below
from mlg_jax.engine import Manifest
from mlg_jax.experiment import PACKED_FILE, launch, log_to_stderr
from mlg_jax.export import PACKED_SUFFIX, SUFFIXES, read_packed
from mlg_jax.models import MODELS, STEMS, ModelSpec
from mlg_jax.pretrained import PRETRAINED, pretrained_path

NAME = "train"

_SIZES = (32, 48, 64, 96, 128, 160, 192, 224)
_MAX_SIZE = {"cpu": 64}  # by platform, unless --image-size is given; elsewhere the largest
_LARGE = 96  # from this size on, networks reduce images at once (stem imagenet)
_NUM_MEASURED = 100  # image files whose size is looked at
_LOGGER = logging.getLogger("mlg_jax")


class Start(NamedTuple):
    """The network to train, the size and statistics of its images, and its first weights."""

    model: dict[str, Any]
    image_size: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    checkpoint: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The images and the files, the network and its start, the training."""
    _add_file_arguments(parser)
    _add_network_arguments(parser)
    parser.add_argument(
        "--epochs",
        type=positive_integer,
        default=30,
        metavar="N",
        help="epochs of each of the two trainings, of the dense network and of the small one "
        "(default: 30)",
    )
    parser.add_argument(
        "--no-flip",
        action="store_true",
        help="do not mirror images in training, for classes that are not the same in a mirror, "
        "such as digits",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Trains the dense network and the small one, reports, and writes the file."""
    log_to_stderr()
    paths = images_below(args.data)
    if not paths:
        raise ValueError(f"`--data` must be a directory with images below it; got {args.data}.")
    start = _start(args, paths)
    network, size = "{name} with stem {stem} and width {width:g}", start.image_size
    _LOGGER.info(f"{network}, %d images of %d x %d".format(**start.model), len(paths), size, size)
    work_dir = Path(args.workdir or Path("runs") / Path(args.data).resolve().name)
    status = launch(parse_config(_config(args, start, len(paths))), work_dir)
    if status == 0:
        write_atomically(args.output, (work_dir / PACKED_FILE).read_bytes())
        _LOGGER.info("%s: mlg predict %s IMAGE", args.output, args.output)
    return status


def _add_file_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="directory with one directory of images for each class, of which a fifth of each is "
        "kept for the test and a tenth of the rest for validation; or with train/CLASS and "
        "test/CLASS",
    )
    parser.add_argument(
        "--output",
        type=output_file,
        default="model.mlg",
        metavar="FILE",
        help="packed model to write (default: model.mlg)",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="checkpoints and report; the same command resumes (default: runs/ and the name of "
        "the data's directory)",
    )


def _add_network_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pretrained",
        choices=PRETRAINED,
        help="start from a trained network that comes with the package",
    )
    parser.add_argument(
        "--init",
        metavar="FILE",
        help=f"start from a packed model ({PACKED_SUFFIX}), or with --model from a PyTorch state "
        f"dict ({', '.join(SUFFIXES)}), of any classes",
    )
    parser.add_argument(
        "--model",
        choices=sorted(MODELS),
        metavar="NAME",
        help=f"architecture: {', '.join(sorted(MODELS))} (default: that of the start; else "
        "resnet18, and on CPUs resnet10 of half the width)",
    )
    parser.add_argument(
        "--stem",
        choices=STEMS,
        help=f"first layers: imagenet for images of {_LARGE} pixels and more, cifar for smaller "
        "ones (default: by the size)",
    )
    parser.add_argument("--width", type=float, metavar="X", help="factor on all channel counts")
    parser.add_argument(
        "--image-size",
        type=positive_integer,
        metavar="N",
        help="side to which images are resized (default: that of most images, on CPUs at most "
        f"{_MAX_SIZE['cpu']}, elsewhere {_SIZES[-1]})",
    )
    parser.add_argument(
        "--base-out",
        type=positive_integer,
        metavar="N",
        help="number of bases across kernels, Bo: more make the file larger and the network better "
        "(default: 44 times the width)",
    )


def _start(args: argparse.Namespace, paths: list[str]) -> Start:
    """What the options say, with defaults by the images and the device."""
    if args.init is not None and args.pretrained is not None:
        raise ValueError(f"Give --init or --pretrained; got {args.init!r} and {args.pretrained!r}.")
    given = args.init if args.pretrained is None else str(pretrained_path(args.pretrained))
    if given is not None and given.endswith(PACKED_SUFFIX):
        return _start_from_packed(args, given)
    size = args.image_size or _usual_size(paths)
    is_cpu, mean, std = jax.default_backend() == "cpu", None, None
    name = args.model or ("resnet10" if is_cpu else "resnet18")
    stem = args.stem or ("imagenet" if size >= _LARGE or given else "cifar")
    usual_width = 0.5 if is_cpu and args.model is None else 1.0
    width = usual_width if args.width is None else args.width
    if given is not None:
        if args.model is None:
            raise ValueError(f"`--model` must name the architecture of {given}; got none.")
        mean, std = KNOWN_STATISTICS["imagenet2012"] if stem == "imagenet" else (None, None)
    return Start({"name": name, "stem": stem, "width": width}, size, mean, std, given)


def _start_from_packed(args: argparse.Namespace, path: str) -> Start:
    manifest = Manifest.of(read_packed(path), path)
    spec = manifest.model
    if not isinstance(spec, ModelSpec):
        raise ValueError(f"`--init` must hold a model of `create_model`; got {spec.module}.")
    found = {"name": spec.name, "stem": spec.stem, "width": spec.width}
    for option, value in zip(("model", "stem", "width"), found.values(), strict=True):
        if (given := getattr(args, option)) not in (None, value):
            raise ValueError(
                f"`--{option}` must be absent or {value}, that of {path}; got {given}."
            )
    pixels = manifest.preprocessing
    size = args.image_size or manifest.image_shape(spec.create())[0]
    mean, std = (None, None) if pixels is None else (pixels.mean, pixels.std)
    return Start(found, size, mean, std, path)


def _usual_size(paths: list[str]) -> int:
    """The largest of `_SIZES` that most images have, within what the device can train on."""
    every = -(-len(paths) // _NUM_MEASURED)
    sides = [min(size) for path in paths[::every] if (size := header_size(path)) is not None]
    limit = _MAX_SIZE.get(jax.default_backend(), _SIZES[-1])
    usual = statistics.median(sides) if sides else limit
    return max((size for size in _SIZES if size <= min(usual, limit)), default=_SIZES[0])


def _config(args: argparse.Namespace, start: Start, num_images: int) -> dict[str, Any]:
    """The experiment: its values are those that suit a few hundred to some ten thousand images."""
    size, is_fresh = start.image_size, start.checkpoint is None
    batch_size = 2 ** max(2, min(7, (num_images // 8).bit_length() - 1))
    optimizer = {"name": "adamw", "weight_decay": 1e-3}

    def loop(rate: float) -> dict[str, Any]:
        schedule = {"name": "one_cycle", "learning_rate": rate}
        return {"num_epochs": args.epochs, "optimizer": optimizer, "schedule": schedule}

    crops = {"min_area": 0.35} if size >= _LARGE else {"crop_padding": max(1, size // 8)}
    return {
        "seed": args.seed,
        "data": {
            "name": "image_folder",
            "data_dir": args.data,
            "image_size": size,
            "batch_size": batch_size,
            "mean": start.mean,
            "std": start.std,
            "augment": {"horizontal_flip": not args.no_flip, **crops},
        },
        "model": {**start.model, "dtype": "auto"},
        "generation": {
            "base_in": 2,
            "base_out": args.base_out or max(1, round(44 * start.model["width"])),
            "basis_bits": 3,
            "coeff_in_bits": 6,
            "coeff_out_bits": 3,
            "weight_bits": 8,
        },
        "teacher": {
            "init_checkpoint": start.checkpoint,
            "label_smoothing": 0.1,
            "train": loop(5e-3 if is_fresh else 1e-3),
        },
        "projection": {"num_steps": 500, "learning_rate": 2e-2},
        "student": {"beta": 0.9, "temperature": 3.0, "penalty": 0.01, "train": loop(3e-3)},
    }
