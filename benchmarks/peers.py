"""Times networks against the best settings of PyTorch and ONNX Runtime, on CPUs, in one run.

    python benchmarks/peers.py [--network resnet18 cifar_cnn] [--forward 1 32 128]
                               [--train 128] [--rounds 3] [--only NAME ...]

PyTorch runs eagerly and by `torch.compile`, in float32 and under bfloat16 autocast, contiguous and
channels last; ONNX Runtime runs the dense network in float32, statically quantised to int8 by its
own tool (per channel, random calibration images), and our factors (`export_onnx`). A training step
is cross-entropy, its gradient and SGD without momentum. All start from uint8 pixels, but training
steps of ours and of Flax from normalised floats.

Every contestant has a process of its own, without the others' threads; processes take turns, for
`--rounds` rounds, and the median over all calls is reported.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

MEAN, STD, SIZE = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 32
BITS = {"resnet18": (2, 44, 3, 6, 3), "cifar_cnn": (2, 42, 3, 6, 3)}
TORCH = [
    f"PyTorch, {mode}, {dtype}, {layout}"
    for mode, dtype, layout in itertools.product(
        ("eager", "compiled"), ("float32", "bfloat16"), ("contiguous", "channels last")
    )
]
FORWARD = [
    "ours, factors",
    "ours, dense",
    "Flax, dense",
    *TORCH,
    "ONNX Runtime, dense, float32",
    "ONNX Runtime, dense, int8",
    "ONNX Runtime, factors",
]
TRAIN = ["ours, factors", "ours, dense", "Flax, dense", *TORCH]
COLUMNS = ("network", "pass", "batch", "contestant", "ms, measured", "of the best PyTorch")


def pixels_of(batch):
    """Random pixels."""
    return np.random.default_rng(0).integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)


def torch_call(network, name, is_training, batch):
    """A call without arguments of the PyTorch network."""
    import torch
    import torch.nn.functional as functional

    _, mode, dtype, layout = name.split(", ")
    module = importlib.import_module(
        {"resnet18": "_torch_resnet", "cifar_cnn": "_torch_cifar_cnn"}[network]
    )
    net = getattr(module, network)(MEAN, STD).train(is_training)
    if layout == "channels last":
        net = net.to(memory_format=torch.channels_last)
    pixels = torch.from_numpy(pixels_of(batch))
    labels = torch.arange(batch) % 10
    weights = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, 1e-3)

    def autocast():
        return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    run = torch.compile(net) if mode == "compiled" else net

    def forward():
        with torch.inference_mode(), autocast():
            return run(pixels).float().numpy()

    def step():
        optimizer.zero_grad()
        with autocast():
            loss = functional.cross_entropy(run(pixels), labels)
        loss.backward()
        optimizer.step()

    return step if is_training else forward


def flax_model(network, name):
    """Our network, with factors or dense, or that of Flax's own layers."""
    from mlg_jax import GenerationSpec, create_model

    if name == "Flax, dense":
        from _plain import plain_layers

        from mlg_jax.models import BasicBlock, CifarCNN, ResNet

        if network == "resnet18":
            return ResNet((2, 2, 2, 2), BasicBlock, num_classes=10, layers=plain_layers())
        return CifarCNN(num_classes=10, layers=plain_layers())
    generation = GenerationSpec.from_bits(*BITS[network]) if name == "ours, factors" else None
    options = {"generation": generation, "weight_bits": 8 if generation else None}
    return create_model(network, num_classes=10, **options)


def jax_call(network, name, is_training, batch):
    """A call without arguments of a JAX network."""
    import jax
    import jax.numpy as jnp
    from _plain import without_our_gradients
    from train_step import training_step

    model, key = flax_model(network, name), jax.random.key(0)
    pixels = pixels_of(batch)
    variables = jax.jit(model.init)(key, jnp.zeros((1, SIZE, SIZE, 3)))
    if not is_training and name != "Flax, dense":
        with tempfile.TemporaryDirectory() as directory:
            predictor = predictor_of(model, variables, directory, batch)
        return lambda: predictor.logits(pixels)
    mean, std = jnp.float32(MEAN), jnp.float32(STD)
    if is_training:
        images = (pixels / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
        arguments = (variables, jnp.asarray(images), jnp.arange(batch) % 10)
        function = training_step(model)
    else:
        arguments = (variables, pixels)
        function = lambda v, x: model.apply(v, (x / 255.0 - mean) / std)  # noqa: E731
    plain = without_our_gradients() if name == "Flax, dense" else contextlib.nullcontext()
    with plain:
        compiled = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def packed_of(model, variables, directory):
    """The model as a packed file."""
    from mlg_jax import save_packed
    from mlg_jax.engine import ImagePreprocessing

    path = pathlib.Path(directory) / "model.mlg"
    preprocessing = ImagePreprocessing(image_size=(SIZE, SIZE), mean=MEAN, std=STD)
    save_packed(path, model, variables, preprocessing=preprocessing)
    return path


def predictor_of(model, variables, directory, batch):
    """Our predictor, with norms folded."""
    from mlg_jax import load_packed

    path = packed_of(model, variables, directory)
    return load_packed(path, fold=True, batch_sizes=(batch,))


def onnx_call(network, name, batch):
    """A call without arguments in ONNX Runtime, with its default options."""
    import jax
    import jax.numpy as jnp
    import onnxruntime

    from mlg_jax.engine import export_onnx
    from mlg_jax.export import read_packed

    model = flax_model(network, "ours, factors" if name.endswith("factors") else "ours, dense")
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    with tempfile.TemporaryDirectory() as directory:
        data = export_onnx(read_packed(packed_of(model, variables, directory)), batch_size=batch)
        path = pathlib.Path(directory) / "model.onnx"
        path.write_bytes(data)
        if name.endswith("int8"):
            path = quantized(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    pixels = pixels_of(batch)
    return lambda: session.run(None, {"images": pixels})


def quantized(path):
    """The network in int8, weights per channel, activations calibrated on random pixels."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{"images": pixels_of(32)}])

        def get_next(self):
            return next(self.batches, None)

    prepared, out = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    quant_pre_process(path, prepared)
    quantize_static(prepared, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    return out


def call_of(network, name, is_training, batch):
    """A call without arguments of any contestant."""
    if name.startswith("PyTorch"):
        return torch_call(network, name, is_training, batch)
    if name.startswith("ONNX"):
        return onnx_call(network, name, batch)
    return jax_call(network, name, is_training, batch)


def work(network, name, is_training, batch, min_seconds):
    """Prints the times of the calls of one process, after three that are not timed."""
    call = call_of(network, name, is_training, batch)
    for _ in range(3):
        call()
    times, start = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < min_seconds:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    print(json.dumps(times))


def times_of(case, name, min_seconds):
    """The times of one process; None, with the reason printed, if it fails."""
    network, is_training, batch = case
    arguments = [network, name, str(int(is_training)), str(batch), str(min_seconds)]
    command = [sys.executable, __file__, "--work", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{case}, {name} is left out: {last}", flush=True)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(case, args):
    """Yields one row per contestant of a network, pass and batch size."""
    network, is_training, batch = case
    names = [n for n in (TRAIN if is_training else FORWARD) if not args.only or n in args.only]
    times = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in list(times):
            found = times_of(case, name, args.min_seconds)
            if found is None:
                del times[name]
            else:
                times[name] += found
    medians = {name: statistics.median(t) for name, t in times.items()}
    best = min((m for n, m in medians.items() if n.startswith("PyTorch")), default=None)
    for name, median in medians.items():
        yield {
            "network": network,
            "pass": "training step" if is_training else "forward",
            "batch": batch,
            "contestant": name,
            "seconds": {"median": median, "n": len(times[name])},
            "of_best_torch": None if best is None else median / best,
        }


def main():
    """Measures, prints the table, writes JSON."""
    if sys.argv[1:2] == ["--work"]:
        network, name, is_training, batch, min_seconds = sys.argv[2:]
        work(network, name, is_training == "1", int(batch), float(min_seconds))
        return
    from _measure import save

    from mlg_jax._tables import table_head, table_row

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", nargs="+", default=list(BITS), choices=list(BITS))
    parser.add_argument("--forward", type=int, nargs="*", default=[1, 32, 128], help="batch sizes")
    parser.add_argument("--train", type=int, nargs="*", default=[128], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=3, help="processes per contestant")
    parser.add_argument("--min-seconds", type=float, default=3.0, help="per process")
    parser.add_argument("--only", nargs="+", choices=FORWARD, help="contestants")
    parser.add_argument("--out", default=None, help="directory of the JSON file")
    args = parser.parse_args()
    cases = [(n, False, b) for n in args.network for b in args.forward]
    cases += [(n, True, b) for n in args.network for b in args.train]
    print(table_head(COLUMNS, "llrlrr"))
    rows = []
    for case in cases:
        for row in measure(case, args):
            rows.append(row)
            ratio = "" if row["of_best_torch"] is None else f"{row['of_best_torch']:.2f}"
            cells = (row["network"], row["pass"], str(row["batch"]), row["contestant"])
            cells += (f"{1e3 * row['seconds']['median']:.2f}", ratio)
            print(table_row(cells), flush=True)
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "onnxruntime")
        if importlib.util.find_spec(name)
    }
    results = {"versions": versions, "rows": rows}
    print(f"written to {save('peers', results, *([args.out] if args.out else []))}")


if __name__ == "__main__":
    main()
