"""Computes logits, probabilities and labels of images with the weights of a packed file."""

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlg_jax import layers
from mlg_jax._checks import check_choice, check_instance, check_integer
from mlg_jax._labels import Label, softmax, top_labels
from mlg_jax._types import Array
from mlg_jax.engine._batching import BATCH_SIZES, Chunk, checked_sizes, chunks, padded
from mlg_jax.engine._fit import bounded_records, naming_misfits
from mlg_jax.engine._fold import fold_norms
from mlg_jax.engine._images import ImagePreprocessing
from mlg_jax.engine._manifest import Manifest
from mlg_jax.engine._network import NetworkSpec, check_tensors, network_of
from mlg_jax.engine._resident import RESIDENCIES, make_resident
from mlg_jax.export import PackedModel
from mlg_jax.models import ImplementationChoice, ModelSpec

MAX_UNDER_WAY = 2  # batches in flight on the device; beyond that the host waits for the oldest

Images = np.ndarray | jax.Array


class Predictor:
    """A network in evaluation mode; generated kernels are not stored under any `residency`.

    Images are `[N, H, W, C]` with any N: uint8 pixels, to which the program applies the file's
    preprocessing, or floating-point and already normalised. One program is compiled for each of
    `batch_sizes` and each image dtype, when it is first needed.

    Args:
        packed: from `read_packed`.
        residency, fold, implementation, batch_sizes, model: see `load_packed`.
        name: the file, for messages.

    Raises:
        TypeError, ValueError: an option is invalid, or `model` is not the module of the file.
        PackedFileError: the manifest is invalid, does not fit the tensors, or describes a network
            that needs too much memory for the size of the file.
    """

    def __init__(
        self,
        packed: PackedModel,
        *,
        residency: str = "float",
        fold: bool = False,
        implementation: ImplementationChoice = "auto",
        batch_sizes: Sequence[int] = BATCH_SIZES,
        model: nn.Module | None = None,
        name: str = "the packed model",
    ) -> None:
        check_choice("residency", residency, RESIDENCIES)
        check_instance("fold", fold, bool)
        self._batch_sizes = checked_sizes(batch_sizes)
        self._name, self._tree = name, packed.manifest
        self._manifest = Manifest.of(packed, name)
        spec = self._manifest.model
        if model is None and isinstance(spec, ModelSpec):
            with naming_misfits(name):
                network = network_of(spec, None, implementation)
        else:  # errors are those of the caller's arguments, not of the file
            network = network_of(spec, model, implementation)
        self._network: Any = network
        records = bounded_records(name, network, self.image_shape, packed.nbytes)
        with naming_misfits(name, ValueError):
            check_tensors(network, self.image_shape, packed)
        to_served = functools.partial(fold_norms, records) if fold else dict
        resident = make_resident(packed, residency, to_served)
        self._arrays, preprocessing = resident.arrays, self.preprocessing
        apply = layers.forward(network, train=False)

        def forward(arrays: list[Array], images: Array) -> Array:
            if preprocessing is not None and images.dtype == jnp.uint8:
                images = preprocessing.normalize(images)
            variables = layers.decoded_variables(records, resident.to_variables(arrays))
            return cast(Array, apply(variables, images))

        self._forward = jax.jit(forward)

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The file's metadata: model, preprocessing, class names, metrics and writing version."""
        return self._tree

    @property
    def spec(self) -> NetworkSpec:
        """The spec of the saved model: a `ModelSpec`, or the description of a custom module."""
        return self._manifest.model

    @property
    def preprocessing(self) -> ImagePreprocessing | None:
        """The preprocessing of uint8 images; None if unknown: then images must be floats."""
        return self._manifest.preprocessing

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per logit; empty if the file has none."""
        return self._manifest.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)` of the images; the network's usual shape if not stored."""
        return self._manifest.image_shape(self._network)

    @property
    def resident_bytes(self) -> int:
        """Bytes of all arrays kept on the device between calls."""
        return sum(array.nbytes for array in self._arrays)

    @property
    def program(self) -> tuple[Any, list[Array]]:
        """The jitted function `(arrays, images) -> logits` for any batch size, and the arrays."""
        return self._forward, self._arrays

    def __call__(self, images: Images) -> np.ndarray:
        """The same as `logits`."""
        return self.logits(images)

    def logits(self, images: Images) -> np.ndarray:
        """Logits, `[N, num_classes]`.

        Raises:
            TypeError: the images are neither uint8 nor floating-point, or are uint8 although the
                file has no preprocessing.
            ValueError: the images do not have the shape that the network takes.
        """
        self._check(images)
        images = _native(images)
        rows: list[np.ndarray] = []
        under_way: collections.deque[tuple[Chunk, jax.Array]] = collections.deque()
        for chunk in chunks(len(images), self._batch_sizes):
            under_way.append((chunk, self._run(padded(images, chunk))))
            if len(under_way) > MAX_UNDER_WAY:
                rows.append(_real_rows(*under_way.popleft()))
        rows += [_real_rows(*item) for item in under_way]
        empty = np.zeros((0, self.spec.num_classes), np.float32)
        return np.concatenate(rows) if rows else empty

    def probabilities(self, images: Images) -> np.ndarray:
        """Softmax of the logits, float32 `[N, num_classes]`. Raises the errors of `logits`."""
        return softmax(self.logits(images))

    def labels(self, images: Images, *, top: int = 1) -> list[list[Label]]:
        """The `top` most probable classes of each image, in descending order of probability.

        Raises:
            TypeError, ValueError: `top` is not an integer from 1 to the number of classes, or an
                error of `logits`.
        """
        check_integer("top", top, 1, self.spec.num_classes)
        return top_labels(self.probabilities(images), self.class_names, top)

    def _run(self, images: Images) -> jax.Array:
        return self._forward(self._arrays, images)

    def _check(self, images: Any) -> None:
        check_instance("images", images, (np.ndarray, jax.Array))
        if images.dtype == np.uint8 and self.preprocessing is None:
            raise TypeError(
                f"`images` must be floating and normalised, as {self._name} has no preprocessing; "
                "got uint8."
            )
        if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(f"`images` must be uint8 or floating; got {images.dtype}.")
        shape = self.preprocessing.image_shape if self.preprocessing else images.shape[1:]
        if images.ndim != 4 or images.shape[1:] != shape:
            axes = ", ".join(map(str, shape)) if self.preprocessing else "H, W, C"
            raise ValueError(f"`images` must have shape [N, {axes}]; got {list(images.shape)}.")


def _native(images: Images) -> Images:
    """Converts to the machine's byte order: JAX rejects arrays with the other one."""
    if isinstance(images, jax.Array):
        return images
    return images.astype(images.dtype.newbyteorder("="), copy=False)


def _real_rows(chunk: Chunk, logits: jax.Array) -> np.ndarray:
    """Waits for a chunk's logits; returns them without the rows of padding."""
    return np.asarray(logits)[: chunk.stop - chunk.start]
