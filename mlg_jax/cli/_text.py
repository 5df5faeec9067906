"""Arguments and output that need neither JAX nor the rest of the library."""

import argparse
import dataclasses
import json
import os
import sys

from mlg_jax._errors import MAX_LINE, printable
from mlg_jax._image_files import FORMAT_NAMES
from mlg_jax._labels import Label

Found = list[tuple[str, list[Label]]]  # the most probable classes of each image file


def positive_integer(text: str) -> int:
    """Converts an argument; argparse reports the error."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1; got {value}.")
    return value


def output_file(text: str) -> str:
    """Converts the name of a file that is written after a long time; argparse reports the error."""
    directory = os.path.dirname(os.path.abspath(text))
    if not os.path.isdir(directory):
        raise argparse.ArgumentTypeError(f"must be a file in a directory that exists; got {text}.")
    return text


def write(text: str) -> None:
    """Writes to stdout; characters outside its encoding are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """The output format."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """The images to classify and the number of classes to show."""
    parser.add_argument("images", metavar="IMAGE", nargs="+", help=f"image files ({FORMAT_NAMES})")
    parser.add_argument(
        "--top",
        type=positive_integer,
        default=5,
        metavar="N",
        help="number of most probable classes to print per image (default: 5)",
    )


def write_labels(found: Found, *, as_json: bool) -> None:
    """Prints the most probable classes of each image."""
    write(_as_json(found) if as_json else "".join(map(_as_text, found)))


def _as_text(item: tuple[str, list[Label]]) -> str:
    path, labels = item
    rows = (f"  {row.probability:7.2%}  {printable(row.name)}\n" for row in labels)
    return f"{printable(path, MAX_LINE)}\n" + "".join(rows)


def _as_json(found: Found) -> str:
    rows = [
        {"image": path, "labels": [dataclasses.asdict(label) for label in labels]}
        for path, labels in found
    ]
    return json.dumps(rows, indent=1) + "\n"
