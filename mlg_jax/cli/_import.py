"""Convert a PyTorch state dict of torchvision or of the original MLG code to a packed model."""

import argparse
import json
import sys
from collections.abc import Sequence

from mlg_jax.cli._text import add_json_argument, positive_integer
from mlg_jax.cli._torch_options import (
    add_network_arguments,
    add_preprocessing_arguments,
    read_network,
)
from mlg_jax.engine import save_packed
from mlg_jax.export import SUFFIXES
from mlg_jax.kernels import GenerationSpec
from mlg_jax.models import MODELS

NAME = "import"

_UNKNOWN = (
    "note: {} takes normalised arrays only; `mlg predict` needs --mean and --std here, those of "
    "the network's training images\n"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, the network, and the preprocessing of its images."""
    parser.add_argument("file", metavar="FILE", help=f"state dict ({', '.join(SUFFIXES)})")
    parser.add_argument("output", metavar="OUTPUT", help="packed model to write")
    parser.add_argument(
        "--model",
        required=True,
        choices=sorted(MODELS),
        metavar="NAME",
        help=f"architecture of the network: {', '.join(sorted(MODELS))}",
    )
    add_network_arguments(parser)
    _add_quantizer_arguments(parser)
    parser.add_argument("--class-names", metavar="FILE", help="text file with one name per line")
    add_json_argument(parser)
    add_preprocessing_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the packed model."""
    class_names = _lines(args.class_names)
    names = ("generation", "weight_bits", "activation_bits")
    quantized = {name: getattr(args, name) for name in names}
    model, variables, preprocessing = read_network(args, **quantized)
    num_bytes = save_packed(
        args.output,
        model,
        variables,
        preprocessing=preprocessing,
        class_names=class_names,
    )
    if preprocessing is None:
        sys.stderr.write(_UNKNOWN.format(args.output))
    num_classes = model.spec.num_classes
    result = {"file": args.output, "file_bytes": num_bytes, "num_classes": num_classes}
    text = f"{num_bytes:,} bytes, {num_classes} classes\n"
    sys.stdout.write(json.dumps(result) + "\n" if args.json else text)
    return 0


def _add_quantizer_arguments(parser: argparse.ArgumentParser) -> None:
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


def _generation(text: str) -> GenerationSpec:
    """Converts `--generation`."""
    try:
        numbers = [int(number) for number in text.split("-")]
        if len(numbers) in (2, 5):
            return GenerationSpec.from_bits(*numbers)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be Bi-Bo or Bi-Bo-qb-qu-qv; got {text!r}.")


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
