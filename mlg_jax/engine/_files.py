"""A trained model into a packed file, and a packed file into a predictor."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn

from mlg_jax.engine._batching import BATCH_SIZES
from mlg_jax.engine._fit import bounded_records
from mlg_jax.engine._images import ImagePreprocessing
from mlg_jax.engine._manifest import Manifest
from mlg_jax.engine._network import spec_of
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
) -> int:
    """Writes a trained model with every quantised tensor at its true width.

    Args:
        path: of the file, which is replaced as a whole or not at all.
        model: as `create_model` made it.
        variables: its parameters and statistics, trained.
        preprocessing: what was done to the pixels; without it the predictor takes floats only.
        class_names: one a logit.
        metrics: what the model reached, finite numbers by name, such as `test_accuracy`.

    Returns:
        The bytes written.

    Raises:
        TypeError, ValueError: a model not made by `create_model` or changed since, variables of
            another model, or names that are not one a logit.
        PackedFileError: a model for images so large that no file may ask for the memory.
        OSError: the file cannot be written; one that was there is whole.

    Example:
        >>> num_bytes = save_packed("model.mlg", model, variables)  # doctest: +SKIP
        >>> logits = load_packed("model.mlg")(images)  # doctest: +SKIP

    Reference: https://arxiv.org/abs/2108.11430.
    """
    manifest = Manifest(
        model=spec_of(model),
        preprocessing=preprocessing,
        class_names=tuple(class_names or ()),
        metrics=metrics or {},
    )
    shape = None if preprocessing is None else (1, *preprocessing.image_shape)
    size_report(model, variables, input_shape=shape)  # raises unless they are the model's
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

    Returns:
        A predictor: called with images `[N, H, W, C]` it gives logits; uint8 images get the
        stored preprocessing, floating ones are already normalised.

    Raises:
        TypeError, ValueError: an option of another type or not among the choices.
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
        name=os.fspath(path),
    )
