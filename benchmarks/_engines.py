"""ResNet-18 for CIFAR in several engines with one interface: write, load, pixels to logits.

Each contestant imports its libraries on demand, starting with `module`, because the cold start
includes imports. It takes part only if its `packages` are installed.
"""

import functools
import importlib.util
import pathlib

import numpy as np

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SIZE = 32


class Packed:
    """A packed file of this library: 2-44-3-6-3, 8-bit classifier."""

    packages, module = ("mlg_jax",), "mlg_jax"

    def __init__(self, **options):
        self.options = options

    def write(self, path):
        """Writes random weights; no measurement depends on them."""
        import jax
        import jax.numpy as jnp

        from mlg_jax import GenerationSpec, create_model, save_packed
        from mlg_jax.engine import ImagePreprocessing

        paper = GenerationSpec.from_bits(2, 44, 3, 6, 3)
        model = create_model("resnet18", num_classes=10, generation=paper, weight_bits=8)
        variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros(model.input_shape))
        preprocessing = ImagePreprocessing(image_size=(SIZE, SIZE), mean=MEAN, std=STD)
        save_packed(path, model, variables, preprocessing=preprocessing)

    def load(self, path):
        """Loads the predictor."""
        from mlg_jax import load_packed

        self.predictor = load_packed(path, batch_sizes=(1, 128), **self.options)

    def __call__(self, pixels):
        return self.predictor.logits(pixels)

    @property
    def resident_bytes(self):
        """Bytes of the weights between calls."""
        return self.predictor.resident_bytes


class FlaxDense:
    """The same network from Flax's own layers, with its variables in an npz file."""

    packages, module = ("flax",), "mlg_jax.models"

    @property
    def model(self):
        """The Flax network."""
        from _plain import plain_layers

        from mlg_jax.models import BasicBlock, ResNet

        return ResNet((2, 2, 2, 2), BasicBlock, num_classes=10, layers=plain_layers())

    def write(self, path):
        """Writes an uncompressed npz file."""
        import jax
        import jax.numpy as jnp
        from flax import traverse_util

        shape = jnp.zeros((1, SIZE, SIZE, 3))
        variables = jax.jit(self.model.init)(jax.random.key(0), shape)
        flat = traverse_util.flatten_dict(variables, sep="/")
        with open(path, "wb") as file:
            np.savez(file, **{name: np.asarray(value) for name, value in flat.items()})

    def load(self, path):
        """Puts the arrays on the device and jits the network."""
        import jax
        import jax.numpy as jnp
        from flax import traverse_util

        with np.load(path) as archive:
            flat = {tuple(name.split("/")): archive[name] for name in archive.files}
        self.variables = jax.device_put(traverse_util.unflatten_dict(flat))
        mean, std, model = jnp.array(MEAN), jnp.array(STD), self.model

        def forward(variables, pixels):
            return model.apply(variables, (pixels / 255.0 - mean) / std)

        self.forward = jax.jit(forward)

    def __call__(self, pixels):
        return np.asarray(self.forward(self.variables, pixels))

    @property
    def resident_bytes(self):
        """Bytes of the weights between calls."""
        import jax

        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.variables))


class TorchDense:
    """The same network in PyTorch, with its state dict in a file."""

    packages, module = ("torch",), "torch"

    @functools.cached_property
    def model(self):
        """The PyTorch network."""
        from _torch_resnet import resnet18

        return resnet18(MEAN, STD).eval()

    def write(self, path):
        """Saves the state dict."""
        import torch

        torch.save(self.model.state_dict(), path)

    def load(self, path):
        """Loads the state dict into a new network."""
        import torch

        self.model.load_state_dict(torch.load(path, weights_only=True))

    def __call__(self, pixels):
        import torch

        with torch.inference_mode():
            return self.model(torch.from_numpy(pixels)).numpy()

    @property
    def resident_bytes(self):
        """Bytes of the weights between calls."""
        return sum(t.numel() * t.element_size() for t in self.model.state_dict().values())


class OnnxDense(TorchDense):
    """The PyTorch network in ONNX Runtime."""

    packages, module = ("torch", "onnx", "onnxscript", "onnxruntime"), "onnxruntime"

    def write(self, path):
        """Exports from PyTorch for any batch size, with weights in the file."""
        import torch

        pixels = torch.zeros((2, SIZE, SIZE, 3), dtype=torch.uint8)
        shapes = {"pixels": {0: torch.export.Dim("batch")}}
        program = torch.onnx.export(self.model, (pixels,), dynamo=True, dynamic_shapes=shapes)
        program.save(path, external_data=False)

    def load(self, path):
        """Opens a session with default options."""
        import onnxruntime

        self.num_bytes = pathlib.Path(path).stat().st_size
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def __call__(self, pixels):
        return self.session.run(None, {"pixels": pixels})[0]

    @property
    def resident_bytes(self):
        """The size of the file, because the runtime does not report it."""
        return self.num_bytes


CONTESTANTS = {
    "mlg float": Packed(),
    "mlg float, folded": Packed(fold=True),
    "mlg codes": Packed(residency="codes"),
    "mlg packed": Packed(residency="packed"),
    "mlg float, generate": Packed(implementation="generate"),
    "flax dense": FlaxDense(),
    "torch dense": TorchDense(),
    "onnxruntime dense": OnnxDense(),
}


def installed():
    """The contestants whose packages are installed."""
    return [
        name
        for name, contestant in CONTESTANTS.items()
        if all(importlib.util.find_spec(package) for package in contestant.packages)
    ]
