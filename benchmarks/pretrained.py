"""The networks of `mlg_jax.pretrained`: made from finished runs, and scored on the test set.

    python benchmarks/pretrained.py [--out DIR]
    python benchmarks/pretrained.py --pack NAME WORKDIR

The first form scores every network, also exported to ONNX if ONNX Runtime is there, on the 10,000
test images of CIFAR-10 (`TFDS_DATA_DIR`). The second writes the file NAME from the student of a run
of `launch.py`, with floats of 16 bits, the accuracy that it has in float32, and a model card.
"""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import time

import numpy as np
from _measure import save

from mlg_jax.data import DataSpec, load_dataset
from mlg_jax.engine import Predictor, export_onnx, load_packed
from mlg_jax.export import read_packed, round_floats, write_packed
from mlg_jax.pretrained import PRETRAINED, pretrained_path

RESULTS = pathlib.Path(__file__).parent / "results"
BATCH = 500
DATA = (
    "CIFAR-10, a copy whose images were compressed again as JPEG of quality 75: accuracies on it "
    "are to be compared with each other only"
)


def pack(name: str, workdir: pathlib.Path) -> int:
    """Writes the file of a network from a run; returns its size."""
    summary = json.loads((workdir / "report" / "summary.json").read_text())
    packed = round_floats(read_packed(workdir / "packed" / "student.mlg"))
    config = summary["config"]
    train, generation = config["student"]["train"], config["generation"]
    notation = "-".join(
        str(generation[key])
        for key in ("base_in", "base_out", "basis_bits", "coeff_in_bits", "coeff_out_bits")
    )
    optimizer, schedule = train["optimizer"]["name"], train["schedule"]
    model = {**packed.manifest["model"], "dtype": "float32", "implementation": "auto"}
    packed = dataclasses.replace(packed, manifest={**packed.manifest, "model": model})
    accuracy = accuracy_of(Predictor(packed, name=name), *test_set())
    card = {
        "data": DATA,
        "recipe": f"configs/cifar10_cpu.py: {notation}, projected from its teacher, distilled for "
        f"{train['num_epochs']} epochs by {optimizer} with a peak learning rate of "
        f"{schedule['learning_rate']:g}; seed {config['seed']}; {summary['device']}",
        "accuracy": f"{accuracy:.2%} of 10,000 test images, its dense "
        f"teacher of {summary['size']['dense_kb']:,.0f} KB "
        f"{summary['teacher']['test_accuracy']:.2%}",
        "licence": "Apache-2.0",
        "intended use": "demonstrations and tests of small networks; it knows ten classes in "
        "pictures of 32 x 32 pixels, and gives one of them for any picture",
    }
    manifest = {**packed.manifest, "metrics": {"test_accuracy": accuracy}, "card": card}
    return write_packed(pretrained_path(name), dataclasses.replace(packed, manifest=manifest))


def score(name: str) -> list[dict]:
    """Accuracy, bytes and time of a network, in this library and in ONNX Runtime."""
    path = pretrained_path(name)
    predictor = load_packed(path)
    images, labels = test_set()
    rows = [row_of(name, "mlg_jax", path.stat().st_size, predictor, images, labels)]
    if importlib.util.find_spec("onnxruntime"):
        data = export_onnx(read_packed(path), name=str(path))
        rows.append(row_of(name, "ONNX Runtime", len(data), onnx_session(data), images, labels))
    return rows


def row_of(name, runtime, num_bytes, predict, images, labels):
    """Scores one contestant: logits of all images, and the median time of one image."""
    accuracy = accuracy_of(predict, images, labels)
    one = images[:1]
    predict(one)
    seconds = []
    for _ in range(30):
        begin = time.perf_counter()
        np.asarray(predict(one))
        seconds.append(time.perf_counter() - begin)
    row = {
        "network": name,
        "runtime": runtime,
        "file_bytes": num_bytes,
        "test_accuracy": accuracy,
        "num_images": len(labels),
        "milliseconds_per_image": 1e3 * float(np.median(seconds)),
    }
    print(row, flush=True)
    return row


def accuracy_of(predict, images, labels) -> float:
    """The share of images whose largest logit is that of their label."""
    starts = range(0, len(images), BATCH)
    logits = np.concatenate([np.asarray(predict(images[k : k + BATCH])) for k in starts])
    return float(np.mean(np.argmax(logits, -1) == labels))


def onnx_session(data: bytes):
    """A function from uint8 images to logits."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    return lambda pixels: session.run(None, {image.name: pixels})[0]


def test_set() -> tuple[np.ndarray, np.ndarray]:
    """The test images, uint8, and their labels."""
    examples = load_dataset(DataSpec(name="cifar10")).test_examples
    batch = examples.read(np.arange(len(examples)))
    return batch["image"], batch["label"]


def main() -> None:
    """Parses the arguments and runs one of the two forms."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pack", nargs=2, metavar=("NAME", "WORKDIR"))
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="directory of the JSON")
    args = parser.parse_args()
    if args.pack:
        name, workdir = args.pack
        print(f"{pack(name, pathlib.Path(workdir)):,} bytes")
        return
    rows = [row for name in PRETRAINED for row in score(name)]
    print(f"written to {save('pretrained', rows, args.out)}")


if __name__ == "__main__":
    main()
