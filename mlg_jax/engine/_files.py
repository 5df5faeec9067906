"""A trained model into a packed file, and a packed file into a predictor."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn

from mlg_jax._checks import check_instance
from mlg_jax.engine._batching import BATCH_SIZES
from mlg_jax.engine._fit import bounded_records
from mlg_jax.engine._images import ImagePreprocessing
from mlg_jax.engine._manifest import Manifest
from mlg_jax.engine._network import describe
from mlg_jax.engine._predictor import Predictor
from mlg_jax.export import pack_variables, read_packed, write_packed
from mlg_jax.layers import layer_records
from mlg_jax.models import ImplementationChoice, size_report

Path = str | os.PathLike[str]


def save_packed(
    path: Path,
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    preprocessing: ImagePreprocessing | None = None,
    class_names: Sequence[str] | None = None,
    metrics: Mapping[str, float] | None = None,
    input_shape: Sequence[int] | None = None,
) -> int:
    """Writes a trained model with every quantised tensor at its true width.

    Args:
        path: of the file, which is replaced as a whole or not at all.
        model: as `create_model` made it; or any Linen module that maps images to logits, for which
            the file keeps the name of its class: `load_packed` then needs the module.
        variables: its parameters and statistics, trained.
        preprocessing: what was done to the pixels; without it the predictor takes floats only.
        class_names: one a logit.
        metrics: what the model reached, finite numbers by name, such as `test_accuracy`.
        input_shape: `[N, H, W, C]` of a module without an `input_shape` of its own, where there is
            no preprocessing.

    Returns:
        The bytes written.

    Raises:
        TypeError, ValueError: variables of another model, class names that are not one per logit,
            or a module that returns anything but logits.
        PackedFileError: a model for images so large that no file may ask for the memory.
        OSError: the file cannot be written; one that was there is whole.

    Example:
        >>> num_bytes = save_packed("model.mlg", model, variables)  # doctest: +SKIP
        >>> logits = load_packed("model.mlg")(images)  # doctest: +SKIP

    Reference: https://arxiv.org/abs/2108.11430.
    """
    check_instance("preprocessing", preprocessing, (ImagePreprocessing, type(None)))
    shape = None if input_shape is None else tuple(input_shape)
    if preprocessing is not None:
        shape = (1, *preprocessing.image_shape)
    size_report(model, variables, input_shape=shape)  # raises unless they are the model's
    manifest = Manifest(
        model=describe(model, variables, shape and shape[1:]),
        preprocessing=preprocessing,
        class_names=tuple(class_names or ()),
        metrics=metrics or {},
    )
    packed = pack_variables(layer_records(model, shape), variables, manifest.tree)
    bounded_records(os.fspath(path), model, shape and shape[1:], packed.nbytes)  # as when loaded
    return write_packed(path, packed)


def load_packed(
    path: Path,
    *,
    residency: str = "float",
    fold: bool = False,
    implementation: ImplementationChoice = "auto",
    batch_sizes: Sequence[int] = BATCH_SIZES,
    model: nn.Module | None = None,
) -> Predictor:
    """Reads a packed file; nothing is compiled before the first call.

    The logits are those of `model.apply(variables, x, train=False)` of the model that was saved,
    bit for bit under the same implementation at a batch size that is not padded, without `fold`.

    Args:
        path: of the file.
        residency: what the weights are in memory between calls: `float` (factors, 32 bits an
            entry), `codes` (8 or 16 bits an entry) or `packed` (as in the file). The latter two
            are decoded inside the program, at every call.
        fold: norms become part of the convolutions; the same up to rounding.
        implementation: how generated kernels are applied, as `create_model` takes it.
        batch_sizes: that programs are compiled for, when first needed; other numbers of images are
            cut and padded to them.
        model: the module of a file that holds one `create_model` did not make.

    Returns:
        A predictor: called with images `[N, H, W, C]` it gives logits; uint8 images get the
        stored preprocessing, floating ones are already normalised.

    Raises:
        TypeError, ValueError: an option of another type or not among the choices, or another
            `model` than the file needs.
        PackedFileError: a file that is no packed model, or a damaged one.
        OSError: a file that cannot be read.

    Reference: https://arxiv.org/abs/2108.11430.
    """
    return Predictor(
        read_packed(path),
        residency=residency,
        fold=fold,
        implementation=implementation,
        batch_sizes=batch_sizes,
        model=model,
        name=os.fspath(path),
    )
