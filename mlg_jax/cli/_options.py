"""Arguments that several subcommands share."""

import argparse
import importlib
import os
import sys
from typing import Any

from flax import linen as nn

from mlg_jax.cli._text import add_json_argument
from mlg_jax.engine import RESIDENCIES, Predictor, load_packed
from mlg_jax.kernels import implementation_names
from mlg_jax.pretrained import PRETRAINED, pretrained_path


def linen_module(text: str) -> nn.Module:
    """Imports `MODULE:NAME`, a Linen module or a callable that returns one.

    argparse reports the errors.
    """
    module, _, name = text.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        value = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"must be MODULE:NAME; got {text!r} ({error}).") from None
    finally:
        del sys.path[0]
    model = value if isinstance(value, nn.Module) else value()
    if not isinstance(model, nn.Module):
        raise argparse.ArgumentTypeError(f"must name a Flax Linen module; {text!r} is {model!r}.")
    return model


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, how its network is held and computed, and the output format."""
    add_file_argument(parser)
    add_weight_arguments(parser)
    add_json_argument(parser)


def add_file_argument(parser: argparse.ArgumentParser) -> None:
    """The packed model: a file, or the name of one that comes with the package."""
    parser.add_argument("file", metavar="FILE", nargs="?", help="packed model (.mlg)")
    parser.add_argument(
        "--pretrained",
        choices=PRETRAINED,
        help="instead of FILE: a trained network that comes with the package",
    )


def packed_file(args: argparse.Namespace) -> str:
    """The file that the arguments of `add_file_argument` name.

    Raises:
        ValueError: they name none, or two.
    """
    if (args.file is None) == (args.pretrained is None):
        got = "neither" if args.file is None else f"{args.file!r} and {args.pretrained!r}"
        raise ValueError(f"Give either FILE or --pretrained; got {got}.")
    return args.file or str(pretrained_path(args.pretrained))


def add_weight_arguments(group: argparse._ActionsContainer) -> None:
    """How weights are held in memory, and how layers with generated kernels are computed."""
    group.add_argument(
        "--residency",
        default="float",
        choices=RESIDENCIES,
        help="how weights are held in memory. float: as float32 factors; codes: as integers of 8 "
        "or 16 bits; packed: in their exact number of bits. The latter two are decoded in every "
        "call (default: float)",
    )
    group.add_argument(
        "--fold",
        action="store_true",
        help="fold each normalisation layer into the convolution before it",
    )
    group.add_argument(
        "--implementation",
        default="auto",
        choices=implementation_names(),
        help="how convolutions with generated kernels are computed; auto chooses the fastest for "
        "each layer (default: auto)",
    )

    group.add_argument(
        "--model",
        type=linen_module,
        metavar="MODULE:NAME",
        help="for a file that holds a custom model: its Flax Linen module, given as an instance, "
        "or as a class or function that creates it without arguments",
    )


def load(args: argparse.Namespace, **options: Any) -> Predictor:
    """Loads the predictor with the options of `add_weight_arguments`."""
    names = ("residency", "fold", "implementation", "model")
    return load_packed(
        packed_file(args), **{name: getattr(args, name) for name in names}, **options
    )
