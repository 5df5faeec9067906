"""Writes a page that classifies pictures with a trained network: one file, no server.

    npm pack onnxruntime-web && tar xzf onnxruntime-web-*.tgz
    python examples/web/build.py package/dist [--pretrained NAME] [--out classify.html]

The page holds the network as ONNX and ONNX Runtime's WebAssembly, and opens from the disk. Any
packed model that says how its images are preprocessed works too: `--model model.mlg`.
"""

import argparse
import base64
import json
import pathlib

from mlg_jax.engine import export_onnx
from mlg_jax.export import read_packed
from mlg_jax.pretrained import PRETRAINED, pretrained_path

TEMPLATE = pathlib.Path(__file__).with_name("page.html")
RUNTIME, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"


def page(dist: pathlib.Path, model: pathlib.Path) -> str:
    """The page as HTML.

    Args:
        dist: the directory `dist` of the npm package onnxruntime-web.
        model: a packed model.
    """
    packed = read_packed(model)
    parts = {
        "runtime": _text(dist.joinpath(RUNTIME).read_bytes()),
        "wasm": _text(dist.joinpath(WASM).read_bytes()),
        "model": _text(export_onnx(packed, images="uint8", name=str(model))),
        "manifest": dict(packed.manifest),
    }
    text = json.dumps(parts).replace("</", "<\\/")  # must not end the script
    return TEMPLATE.read_text().replace("/*PARTS*/null", text)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def main() -> None:
    """Parses the arguments and writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dist", type=pathlib.Path, help="directory dist of onnxruntime-web")
    parser.add_argument("--pretrained", default=PRETRAINED[0], choices=PRETRAINED)
    parser.add_argument("--model", type=pathlib.Path, help="another packed model")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("classify.html"))
    args = parser.parse_args()
    args.out.write_text(page(args.dist, args.model or pretrained_path(args.pretrained)))
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
