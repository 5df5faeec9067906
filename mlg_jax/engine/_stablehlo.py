"""A predictor's program in StableHLO: an artefact that runs without this package."""

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
        model: as `load_packed` takes it.
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
    chosen = _implementations(packed, model, implementation, batch_size, name)
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


def _implementations(
    packed: PackedModel,
    model: nn.Module | None,
    implementation: ImplementationChoice,
    batch_size: int,
    name: str,
) -> ImplementationChoice:
    """By layer, as nothing can be chosen while the batch is a symbol; a module chooses its own."""
    manifest = Manifest.of(packed, name)
    if isinstance(manifest.model, ModuleSpec) and manifest.model.kernel is None:
        return implementation
    with naming_misfits(name):
        network = network_of(manifest.model, model, implementation)
    with naming_misfits(name, ValueError):
        records = layer_records(network, (batch_size, *manifest.image_shape(network)))
    return {r.name: r.implementation for r in records if r.implementation is not None}
