"""Classifies images by ONNX Runtime, from a model of `mlg export`; starts without JAX."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlg_jax._image_files import read_images
from mlg_jax._labels import Label, softmax, top_labels

MANIFEST = "mlg_jax"  # key of the manifest in the metadata of the model

_BATCH = 32


class OnnxSession:
    """A network in ONNX Runtime on the CPU.

    Args:
        model: the content of an ONNX file, or its path.
        name: the file, for messages.

    Raises:
        ImportError: the package `onnxruntime` is missing.
        FileNotFoundError: the file does not exist.
        ValueError: it is not an ONNX model written by `mlg export`.
    """

    def __init__(self, model: bytes | str, name: str) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"ONNX Runtime needs `pip install onnxruntime`. {error}") from None
        if isinstance(model, str) and not os.path.exists(model):
            raise FileNotFoundError(f"There is no file {model}.")
        try:
            self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes have no common base but this one
            raise ValueError(f"{name} must be an ONNX model; {error}") from None
        metadata = self._session.get_modelmeta().custom_metadata_map
        if MANIFEST not in metadata:
            raise ValueError(f"{name} must be written by `mlg export`; it has no manifest.")
        manifest = json.loads(metadata[MANIFEST])
        self._preprocessing: dict[str, Any] | None = manifest["preprocessing"]
        self.class_names: list[str] = manifest["class_names"]
        (self._input,) = self._session.get_inputs()
        self.name = name

    def logits(self, images: np.ndarray) -> np.ndarray:
        """float32 `[N, num_classes]` of uint8 or normalised float32 images `[N, h, w, c]`."""
        if self._input.type == "tensor(float)" and images.dtype == np.uint8:
            images = self._normalized(images)
        if list(self._input.shape[1:]) != list(images.shape[1:]):  # channels first
            images = np.ascontiguousarray(np.moveaxis(images, 3, 1))
        (logits,) = self._session.run(None, {self._input.name: images})
        return np.asarray(logits)

    def labels(self, paths: Sequence[str], top: int) -> list[list[Label]]:
        """The `top` most probable classes of each image file, or all if there are fewer.

        Raises:
            ValueError: the model does not specify how images are preprocessed, or a file is not an
                image of a size that fits.
            FileNotFoundError: a file does not exist.
        """
        if self._preprocessing is None:
            raise ValueError(f"{self.name} does not specify how images are preprocessed.")
        height, width = self._preprocessing["image_size"]
        shape = (height, width, len(self._preprocessing["mean"]))
        resize = self._preprocessing["resize"]
        found: list[list[Label]] = []
        for start in range(0, len(paths), _BATCH):
            images = read_images(paths[start : start + _BATCH], shape, resize)
            logits = self.logits(images)
            found += top_labels(softmax(logits), self.class_names, min(top, logits.shape[1]))
        return found

    def _normalized(self, images: np.ndarray) -> np.ndarray:
        """`(x / 255 - mean) / std` of uint8 pixels, float32."""
        assert self._preprocessing is not None
        mean, std = (np.float32(self._preprocessing[key]) for key in ("mean", "std"))
        return (images / np.float32(255) - mean) / std
