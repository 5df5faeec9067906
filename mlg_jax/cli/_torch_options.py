"""A PyTorch file as a network: options for its architecture and for its images' preprocessing."""

import argparse
from typing import Any

from flax import linen as nn

from mlg_jax._image_files import CENTER_BICUBIC, CROP_875_BILINEAR, RESIZES
from mlg_jax.cli._text import positive_integer
from mlg_jax.data import KNOWN_STATISTICS
from mlg_jax.engine import ImagePreprocessing, import_torch
from mlg_jax.export import read_torch
from mlg_jax.models import STEMS, ModelSpec

_OPTIONS = {"name": "--model ", "stem": "--stem ", "width": "--width "}


def add_network_arguments(group: argparse._ActionsContainer) -> None:
    """What a state dict does not say of its network beside its name."""
    group.add_argument(
        "--stem",
        default="imagenet",
        choices=STEMS,
        help="first layers of the network: cifar for small images, imagenet for large ones "
        "(default: imagenet)",
    )
    group.add_argument(
        "--width",
        type=float,
        default=1.0,
        metavar="X",
        help="factor on all channel counts (default: 1)",
    )


def add_preprocessing_arguments(parser: argparse.ArgumentParser) -> None:
    """How pixels become inputs; the default is that of torchvision's networks."""
    group = parser.add_argument_group(
        "preprocessing",
        "stored in the file, so that the model accepts pixels. By default that of torchvision's "
        "networks, which --stem imagenet stands for: ImageNet's mean and deviation, the central "
        "square of 7/8 of the shorter side, bilinear. A network with --stem cifar has none unless "
        "--mean and --std are given",
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
    group.add_argument(
        "--resize",
        choices=RESIZES,
        help="how image files become square: center_bicubic is the largest central square, "
        "resized; crop_875_bilinear the central 7/8 of the shorter side, as torchvision evaluates "
        "(default: the latter, or the former where --mean and --std are given)",
    )


def read_network(
    args: argparse.Namespace, **quantized: Any
) -> tuple[nn.Module, dict[str, Any], ImagePreprocessing | None]:
    """The module of the file, its variables and its preprocessing.

    Args:
        args: the values of `file` and of the options above.
        **quantized: further fields of the `ModelSpec`.

    Raises:
        ValueError: an option is invalid, or the file is that of another network.
    """
    # The number of classes is read from the file.
    spec = ModelSpec(name=args.model, num_classes=1, stem=args.stem, width=args.width, **quantized)
    preprocessing = _preprocessing(args, spec.create().input_shape)
    model, variables = import_torch(read_torch(args.file), spec, options=_OPTIONS)
    return model, variables, preprocessing


def _preprocessing(
    args: argparse.Namespace, input_shape: tuple[int, ...]
) -> ImagePreprocessing | None:
    """What the options say; None for small images of unknown statistics."""
    _, height, width, channels = input_shape
    size = (args.image_size,) * 2 if args.image_size else (height, width)
    if args.mean is None and args.std is None:
        if args.stem == "imagenet":
            mean, std = KNOWN_STATISTICS["imagenet2012"]
            resize = args.resize or CROP_875_BILINEAR
            return ImagePreprocessing(image_size=size, mean=mean, std=std, resize=resize)
        if args.image_size is None and args.resize is None:
            return None
    for name in ("mean", "std"):
        if (count := len(getattr(args, name) or ())) != channels:
            raise ValueError(
                f"`--{name}` must be {channels} numbers, one per channel of the network's images; "
                f"got {count or 'none'}."
            )
    return ImagePreprocessing(
        image_size=size,
        mean=tuple(args.mean),
        std=tuple(args.std),
        resize=args.resize or CENTER_BICUBIC,
    )


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
