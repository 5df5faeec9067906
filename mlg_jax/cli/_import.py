"""Convert a PyTorch state dict of torchvision or of the original MLG code to a packed model."""

import argparse
import json
import sys
from collections.abc import Sequence

from mlg_jax.cli._text import add_json_argument, positive_integer
from mlg_jax.engine import ImagePreprocessing, import_torch, save_packed
from mlg_jax.export import SUFFIXES, read_torch
from mlg_jax.kernels import GenerationSpec
from mlg_jax.models import MODELS, STEMS, ModelSpec

NAME = "import"

_OPTIONS = {"name": "--model ", "stem": "--stem ", "width": "--width "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, the network, and the preprocessing of its images."""
    parser.add_argument("file", metavar="FILE", help=f"state dict ({', '.join(SUFFIXES)})")
    parser.add_argument("output", metavar="OUTPUT", help="packed model to write")
    _add_network_arguments(parser)
    parser.add_argument("--class-names", metavar="FILE", help="text file with one name per line")
    add_json_argument(parser)
    _add_preprocessing_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the packed model."""
    spec, class_names = _spec(args), _lines(args.class_names)
    preprocessing = _preprocessing(args, spec.create().input_shape)
    model, variables = import_torch(read_torch(args.file), spec, options=_OPTIONS)
    num_classes = model.spec.num_classes
    num_bytes = save_packed(
        args.output,
        model,
        variables,
        preprocessing=preprocessing,
        class_names=class_names,
    )
    result = {"file": args.output, "file_bytes": num_bytes, "num_classes": num_classes}
    text = f"{num_bytes:,} bytes, {num_classes} classes\n"
    sys.stdout.write(json.dumps(result) + "\n" if args.json else text)
    return 0


def _add_network_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        choices=sorted(MODELS),
        metavar="NAME",
        help=f"architecture of the network: {', '.join(sorted(MODELS))}",
    )
    parser.add_argument(
        "--stem",
        default="imagenet",
        choices=STEMS,
        help="first layers of the network: cifar for small images, imagenet for large ones "
        "(default: imagenet)",
    )
    parser.add_argument(
        "--width",
        type=float,
        default=1.0,
        metavar="X",
        help="factor on all channel counts (default: 1)",
    )
    parser.add_argument(
        "--generation",
        type=_generation,
        metavar="Bi-Bo[-qb-qu-qv]",
        help="for checkpoints of the original MLG code: numbers of bases within and across "
        "kernels and bits of the three factors B, U and V, such as 2-44-3-6-3",
    )
    parser.add_argument(
        "--weight-bits",
        type=positive_integer,
        metavar="N",
        help="bits of the classifier and of kernels that are not generated "
        "(default: not quantised)",
    )
    parser.add_argument(
        "--activation-bits",
        type=positive_integer,
        metavar="N",
        help="bits of the inputs of convolutions and classifier (default: not quantised)",
    )


def _add_preprocessing_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "preprocessing",
        "stored in the file, so that the model accepts pixels; omit all or give "
        "at least --mean and --std",
    )
    group.add_argument(
        "--mean",
        type=_in_unit_interval,
        nargs="+",
        metavar="X",
        help="mean of the pixels, scaled to [0, 1], per channel",
    )
    group.add_argument(
        "--std",
        type=_positive,
        nargs="+",
        metavar="X",
        help="standard deviation of the pixels, scaled to [0, 1], per channel",
    )
    group.add_argument(
        "--image-size",
        type=positive_integer,
        metavar="N",
        help="height and width to which images are resized (default: the network's usual size)",
    )


def _spec(args: argparse.Namespace) -> ModelSpec:
    """The model given by the arguments; the number of classes is read from the file."""
    names = ("stem", "width", "generation", "weight_bits", "activation_bits")
    options = {name: getattr(args, name) for name in names}
    return ModelSpec(name=args.model, num_classes=1, **options)


def _generation(text: str) -> GenerationSpec:
    """Converts `--generation`."""
    try:
        numbers = [int(number) for number in text.split("-")]
        if len(numbers) in (2, 5):
            return GenerationSpec.from_bits(*numbers)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be Bi-Bo or Bi-Bo-qb-qu-qv; got {text!r}.")


def _preprocessing(
    args: argparse.Namespace, input_shape: tuple[int, ...]
) -> ImagePreprocessing | None:
    if args.mean is None and args.std is None and args.image_size is None:
        return None
    _, height, width, channels = input_shape
    for name in ("mean", "std"):
        if (count := len(getattr(args, name) or ())) != channels:
            raise ValueError(
                f"`--{name}` must be {channels} numbers, one per channel of the network's images; "
                f"got {count or 'none'}."
            )
    size = (args.image_size,) * 2 if args.image_size else (height, width)
    return ImagePreprocessing(image_size=size, mean=tuple(args.mean), std=tuple(args.std))


def _in_unit_interval(text: str) -> float:
    """Converts `--mean`."""
    if not 0.0 <= (value := float(text)) <= 1.0:
        raise argparse.ArgumentTypeError(f"must be numbers in [0, 1], black to white; got {text}.")
    return value


def _positive(text: str) -> float:
    """Converts `--std`."""
    if not 0.0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be finite numbers > 0; got {text}.")
    return value


def _lines(path: str | None) -> Sequence[str] | None:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`--class-names` must be a UTF-8 text file; got {path}: {error}."
        ) from None
