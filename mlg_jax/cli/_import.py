"""Make a packed model of a PyTorch state dict: torchvision's names, or the original MLG code's."""

import argparse
import json
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlg_jax.cli._options import positive_integer
from mlg_jax.engine import ImagePreprocessing, save_packed
from mlg_jax.export import from_torch, read_torch, torch_num_classes
from mlg_jax.generation import GenerationSpec
from mlg_jax.layers import layer_records
from mlg_jax.models import MODELS, ModelSpec

NAME = "import"

_STEMS = ("cifar", "imagenet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, the network, and what it was trained on."""
    parser.add_argument("file", metavar="FILE", help="a state dict: .safetensors, .pth, .pt, .bin")
    parser.add_argument("output", metavar="OUTPUT", help="the packed model to write")
    parser.add_argument("--model", required=True, choices=sorted(MODELS))
    parser.add_argument("--stem", default="imagenet", choices=_STEMS)
    parser.add_argument("--width", type=float, default=1.0, metavar="X", help="default: 1")
    parser.add_argument(
        "--generation",
        type=_generation,
        metavar="Bi-Bo[-qb-qu-qv]",
        help="of a checkpoint of the original, such as 2-44-3-6-3",
    )
    for name, what in (("weight", "the classifier"), ("activation", "the layers' inputs")):
        parser.add_argument(f"--{name}-bits", type=positive_integer, metavar="N", help=f"of {what}")
    group = parser.add_argument_group("preprocessing of pixels, in [0, 1]")
    group.add_argument("--mean", type=float, nargs="+", metavar="X", help="one number a channel")
    group.add_argument("--std", type=float, nargs="+", metavar="X")
    group.add_argument(
        "--image-size", type=positive_integer, metavar="N", help="default: the stem's"
    )
    parser.add_argument("--class-names", metavar="FILE", help="one name a line")
    parser.add_argument("--json", action="store_true", help="write JSON")


def run(args: argparse.Namespace) -> int:
    """Writes the packed model."""
    state = read_torch(args.file)
    num_classes = torch_num_classes(state, layer_records(_model(args, num_classes=1)))
    model = _model(args, num_classes=num_classes)
    image = jax.ShapeDtypeStruct(model.input_shape, jnp.float32)
    template = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), image)
    num_bytes = save_packed(
        args.output,
        model,
        from_torch(state, layer_records(model), template),
        preprocessing=_preprocessing(args, model.input_shape[1]),
        class_names=_lines(args.class_names),
    )
    result = {"file": args.output, "file_bytes": num_bytes, "num_classes": num_classes}
    text = f"{num_bytes:,} bytes, {num_classes} classes\n"
    sys.stdout.write(json.dumps(result) + "\n" if args.json else text)
    return 0


def _model(args: argparse.Namespace, *, num_classes: int) -> nn.Module:
    names = ("stem", "width", "generation", "weight_bits", "activation_bits")
    options = {name: getattr(args, name) for name in names}
    return ModelSpec(name=args.model, num_classes=num_classes, **options).create()


def _generation(text: str) -> GenerationSpec:
    """An argument's value."""
    try:
        numbers = [int(number) for number in text.split("-")]
        if len(numbers) in (2, 5):
            return GenerationSpec.from_bits(*numbers)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be Bi-Bo or Bi-Bo-qb-qu-qv; got {text!r}.")


def _preprocessing(args: argparse.Namespace, usual_size: int) -> ImagePreprocessing | None:
    if args.mean is None and args.std is None:
        return None
    size = args.image_size or usual_size
    mean, std = (tuple(values or ()) for values in (args.mean, args.std))
    return ImagePreprocessing(image_size=(size, size), mean=mean, std=std)


def _lines(path: str | None) -> Sequence[str] | None:
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]
