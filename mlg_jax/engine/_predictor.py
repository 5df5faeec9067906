"""Images to logits, probabilities and labels, with the weights of a packed file."""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlg_jax import layers
from mlg_jax._checks import check_choice, check_instance, check_integer
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

MAX_UNDER_WAY = 2  # batches that the device has before the host waits for the first of them

Images = np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class Label:
    """A class and how probable it is."""

    index: int
    name: str  # the index in words where the file names no classes
    probability: float


class Predictor:
    """A network in evaluation mode; its kernels are never stored, whatever `residency` says.

    Images are `[N, H, W, C]`, any N: uint8 pixels, to which the file's preprocessing is applied
    inside the program, or floating and already normalised. Programs are compiled when they are
    first needed, one for each of `batch_sizes` and image type.

    Args:
        packed: the content of a file.
        residency, fold, implementation, batch_sizes, model: as `load_packed` takes them.
        name: of the file, for messages.

    Raises:
        TypeError, ValueError: an option of another type or not among the choices.
        PackedFileError: a manifest that does not fit, or one that asks for more memory than a
            file of its bytes may.
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
        else:  # what the caller gives is the caller's fault
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
        """What the file says of itself: model, preprocessing, class names, metrics, maker."""
        return self._tree

    @property
    def spec(self) -> NetworkSpec:
        """The model that was saved: what makes it, or the module that it is."""
        return self._manifest.model

    @property
    def preprocessing(self) -> ImagePreprocessing | None:
        """What is applied to uint8 images; None: the file does not say, so they must be floats."""
        return self._manifest.preprocessing

    @property
    def class_names(self) -> tuple[str, ...]:
        """One a logit; empty where the file names none."""
        return self._manifest.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)`; of the network's usual images where the file has none."""
        return self._manifest.image_shape(self._network)

    @property
    def resident_bytes(self) -> int:
        """Bytes of all arrays that live between calls, on the device."""
        return sum(array.nbytes for array in self._arrays)

    @property
    def program(self) -> tuple[Any, list[Array]]:
        """The jitted `(arrays, images) -> logits` of any batch size, and the arrays."""
        return self._forward, self._arrays

    def __call__(self, images: Images) -> np.ndarray:
        """As `logits`."""
        return self.logits(images)

    def logits(self, images: Images) -> np.ndarray:
        """Logits, `[N, num_classes]`.

        Raises:
            TypeError: images that are neither uint8 nor floating, or uint8 without preprocessing.
            ValueError: images of another shape than the network's.
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
        """Softmax of the logits, float32 `[N, num_classes]`. Raises as `logits`."""
        logits = self.logits(images).astype(np.float32)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True)

    def labels(self, images: Images, *, top: int = 1) -> list[list[Label]]:
        """The `top` most probable classes of each image, best first. Raises as `logits`."""
        check_integer("top", top, 1, self.spec.num_classes)
        probabilities = self.probabilities(images)
        best = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
        return [
            [Label(int(i), self._name_of(int(i)), float(row[i])) for i in order]
            for row, order in zip(probabilities, best, strict=True)
        ]

    def _name_of(self, index: int) -> str:
        return self.class_names[index] if self.class_names else str(index)

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
    """In this machine's byte order: JAX takes arrays of the other one as if they were in this."""
    if isinstance(images, jax.Array):
        return images
    return images.astype(images.dtype.newbyteorder("="), copy=False)


def _real_rows(chunk: Chunk, logits: jax.Array) -> np.ndarray:
    """Without those that were filled in; waits for them."""
    return np.asarray(logits)[: chunk.stop - chunk.start]
