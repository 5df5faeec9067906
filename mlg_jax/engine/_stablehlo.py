"""Exports a predictor's program as StableHLO, which runs without this package."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import ShapeDtypeStruct, export, jit

from mlg_jax._checks import check_choice, check_instance, check_integer
from mlg_jax._types import Array
from mlg_jax.engine._fit import naming_misfits
from mlg_jax.engine._manifest import Manifest
from mlg_jax.engine._network import ModuleSpec, network_of
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
    model: nn.Module | None = None,
    name: str = "the packed model",
) -> bytes:
    """Exports the network of a packed file; `jax.export.deserialize(data).call(images)` runs it.

    The call needs JAX, but not this package. JAX guarantees to read an artefact for six months
    only, so keep the packed file.

    Args:
        packed: from `read_packed`.
        images: `float32` for normalised images, or `uint8` for pixels, to which the program applies
            the stored preprocessing.
        weights: `constants` of the program, or `arguments`: then it is called with `(list of
            arrays, images)`. For the residency `float` these arrays are the leaves of the served
            variables in the order of `jax.tree.leaves`.
        residency: see `load_packed`; `packed` gives a small artefact that decodes the weights in
            every call.
        fold: see `load_packed`.
        implementation: see `load_packed`.
        batch_size: the batch size for which `auto` chooses implementations; the artefact accepts
            any batch size.
        platforms: the platforms to lower for: `cpu`, `cuda` or both.
        model: see `load_packed`.
        name: the file, for messages.

    Returns:
        A serialised `jax.export.Exported` that maps images `[b, height, width, channels]`, for any
        b, to logits `[b, num_classes]`.

    Raises:
        ImportError: the package `flatbuffers` is missing.
        TypeError, ValueError: an argument is invalid, or `images` is `uint8` although the file has
            no preprocessing.
        PackedFileError: the tensors do not fit the model, or the manifest is invalid.

    Examples:
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
    chosen = chosen_implementations(packed, model, implementation, batch_size, name)
    predictor = Predictor(
        packed, residency=residency, fold=fold, implementation=chosen, model=model, name=name
    )
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


def chosen_implementations(
    packed: PackedModel,
    model: nn.Module | None,
    implementation: ImplementationChoice,
    batch_size: int,
    name: str,
) -> ImplementationChoice:
    """Implementations by layer, because `auto` cannot choose them for a symbolic batch size.

    A custom module with its own kernels keeps the caller's argument.
    """
    manifest = Manifest.of(packed, name)
    if isinstance(manifest.model, ModuleSpec) and manifest.model.kernel is None:
        return implementation
    with naming_misfits(name):
        network = network_of(manifest.model, model, implementation)
    with naming_misfits(name, ValueError):
        records = layer_records(network, (batch_size, *manifest.image_shape(network)))
    return {r.name: r.implementation for r in records if r.implementation is not None}
