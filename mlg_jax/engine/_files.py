"""Saves a trained model to a packed file, and loads a packed file as a predictor."""

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
from mlg_jax.export import pack_variables, read_packed, round_floats, write_packed
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
    float_bits: int = 32,
    card: Mapping[str, str] | None = None,
) -> int:
    """Writes a trained model to a file; quantised tensors take only their own number of bits.

    Args:
        path: the file to write, atomically: an existing file is either replaced or unchanged.
        model: a model from `create_model`, or any Linen module that maps images to logits. Of the
            latter the file stores only the class name, so `load_packed` needs the module again.
        variables: the trained parameters and statistics of the model.
        preprocessing: of the pixels in training; without it, the predictor takes only floats.
        class_names: one name per logit.
        metrics: finite numbers by name, such as `test_accuracy`.
        input_shape: `[N, H, W, C]`; required if `preprocessing` is None and the module has no
            attribute `input_shape`.
        float_bits: bits of an entry of what is not quantised, such as the statistics of norms: 32,
            or 16 to round them, which changes the logits by about a thousandth.
        card: a model card, text by heading, which `mlg inspect` prints: data, recipe, licence,
            intended use.

    Returns:
        The size of the file in bytes.

    Raises:
        TypeError, ValueError: the variables are those of another model, the number of class names
            is not the number of logits, or the module does not return logits.
        PackedFileError: the model's images or kernels are larger than `load_packed` allows.
        OSError: the file cannot be written.

    Examples:
        >>> num_bytes = save_packed("model.mlg", model, variables)  # doctest: +SKIP
        >>> logits = load_packed("model.mlg")(images)  # doctest: +SKIP

    Reference: https://arxiv.org/abs/2108.11430.
    """
    check_instance("preprocessing", preprocessing, (ImagePreprocessing, type(None)))
    if float_bits not in (16, 32):
        raise ValueError(f"`float_bits` must be 16 or 32; got {float_bits!r}.")
    shape = None if input_shape is None else tuple(input_shape)
    if preprocessing is not None:
        shape = (1, *preprocessing.image_shape)
    size_report(model, variables, input_shape=shape)  # raises if the variables do not fit
    manifest = Manifest(
        model=describe(model, variables, shape and shape[1:]),
        preprocessing=preprocessing,
        class_names=tuple(class_names or ()),
        metrics=metrics or {},
        card=card or {},
    )
    packed = pack_variables(layer_records(model, shape), variables, manifest.tree)
    if float_bits == 16:
        packed = round_floats(packed)
    # Raises for a file that `load_packed` would reject.
    bounded_records(os.fspath(path), model, shape and shape[1:], packed.nbytes)
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

    The logits equal `model.apply(variables, x, train=False)` of the saved model. They are
    bit-identical without `fold`, with the same implementation and without padding of the batch.

    Args:
        path: the file to read.
        residency: how the weights are kept in memory between calls: `float` (factors, 32 bits per
            entry), `codes` (8 or 16 bits per entry) or `packed` (the exact number of bits). The
            latter two are decoded inside the program, in every call.
        fold: whether to fold norms into the convolutions; changes the logits by rounding errors.
        implementation: how generated kernels are applied; see `create_model`.
        batch_sizes: batch sizes to compile programs for, each when it is first needed; other
            numbers of images are split and padded to these.
        model: the module, required if the saved model was not made by `create_model`.

    Returns:
        A predictor. Called with images `[N, H, W, C]`, it returns logits; it applies the stored
        preprocessing to uint8 images and takes floating-point images as already normalised.

    Raises:
        TypeError, ValueError: an option is invalid, or `model` is not the module of the file.
        PackedFileError: the file is not a packed model, or is damaged.
        OSError: the file cannot be read.

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
