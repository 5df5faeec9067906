"""A predictor's program in StableHLO: an artefact that runs without this package."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import ShapeDtypeStruct, export, jit

from mlg_jax._checks import check_choice, check_instance, check_integer
from mlg_jax._types import Array
from mlg_jax.engine._fit import naming_misfits
from mlg_jax.engine._manifest import Manifest
from mlg_jax.engine._network import decoded_network
from mlg_jax.engine._predictor import Predictor
from mlg_jax.export import PackedModel
from mlg_jax.layers import layer_records
from mlg_jax.models import ImplementationChoice

PLATFORMS = ("cpu", "cuda")
IMAGE_DTYPES = ("float32", "uint8")
WEIGHTS = ("constants", "arguments")


def export_stablehlo(
    packed: PackedModel,
    *,
    images: str = "float32",
    weights: str = "constants",
    residency: str = "float",
    fold: bool = False,
    implementation: ImplementationChoice = "auto",
    batch_size: int = 1,
    platforms: Sequence[str] = PLATFORMS,
    name: str = "the packed model",
) -> bytes:
    """The network of a packed file, to be run by `jax.export.deserialize(data).call(images)`.

    The call needs JAX and nothing of this package. JAX reads an artefact for six months after the
    version that wrote it, so keep the packed file.

    Args:
        packed: from `read_packed`.
        images: `float32`, normalised, or `uint8`, to which the stored preprocessing is applied.
        weights: `constants` in the program; or `arguments`: it is called with `(list of arrays,
            images)`, for the residency `float` the leaves of the file's variables in the order of
            `jax.tree.leaves`.
        residency: as `load_packed` takes it; `packed` makes a small artefact, which decodes the
            weights in every call.
        fold: as `load_packed` takes it.
        implementation: as `load_packed` takes it.
        batch_size: what `auto` chooses implementations for; the artefact takes any.
        platforms: what the program is lowered for, `cpu`, `cuda` or both.
        name: of the file, for messages.

    Returns:
        A serialised `jax.export.Exported`: images `[b, height, width, channels]`, any b, to logits
        `[b, num_classes]`.

    Raises:
        ImportError: the package `flatbuffers` is missing.
        TypeError, ValueError: an argument of another type or not among the choices, or uint8
            images without preprocessing.
        PackedFileError: tensors or a manifest that do not fit.

    Example:
        >>> data = export_stablehlo(read_packed("model.mlg"))  # doctest: +SKIP
        >>> logits = jax.export.deserialize(data).call(images)  # doctest: +SKIP

    Reference: https://docs.jax.dev/en/latest/export/export.html.
    """
    check_instance("packed", packed, PackedModel)
    check_choice("images", images, IMAGE_DTYPES)
    check_choice("weights", weights, WEIGHTS)
    if not platforms:
        raise ValueError(f"`platforms` must be some of {sorted(PLATFORMS)}; got none.")
    for platform in platforms:
        check_choice("platforms", platform, PLATFORMS)
    check_integer("batch_size", batch_size, 1)
    chosen = _implementations(packed, implementation, fold, batch_size, name)
    predictor = Predictor(packed, residency=residency, fold=fold, implementation=chosen, name=name)
    if images == "uint8" and predictor.preprocessing is None:
        raise ValueError(
            "`images` must be 'float32', as the file has no preprocessing; got 'uint8'."
        )
    batch = export.symbolic_shape("b")
    pixels = ShapeDtypeStruct((*batch, *predictor.image_shape), jnp.dtype(images))
    forward, arrays = predictor.program

    def with_constants(pixels: Array) -> Array:
        return forward(arrays, pixels)

    if weights == "constants":
        exported = export.export(jit(with_constants), platforms=platforms)(pixels)
    else:
        shapes = [ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
        exported = export.export(forward, platforms=platforms)(shapes, pixels)
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise ImportError(f"An artefact needs `pip install mlg-jax[export]`. {error}") from None


def _implementations(
    packed: PackedModel,
    implementation: ImplementationChoice,
    fold: bool,
    batch_size: int,
    name: str,
) -> dict[str, str]:
    """By layer: nothing can be chosen while the batch is a symbol."""
    manifest = Manifest.of(packed, name)
    with naming_misfits(name):
        network: Any = decoded_network(
            manifest.model, implementation=implementation, is_folded=fold
        )
    preprocessing = manifest.preprocessing
    shape = preprocessing.image_shape if preprocessing else network.input_shape[1:]
    with naming_misfits(name, ValueError):
        records = layer_records(network, (batch_size, *shape))
    return {r.name: r.implementation for r in records if r.implementation is not None}
