"""Finds and loads the packed files of this package."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mlg_jax._checks import check_choice
from mlg_jax.engine import BATCH_SIZES, Predictor, load_packed
from mlg_jax.models import ImplementationChoice

PretrainedName = Literal["cifar10_cnn", "cifar10_cnn_small"]
PRETRAINED = ("cifar10_cnn", "cifar10_cnn_small")


def pretrained_path(name: PretrainedName) -> Path:
    """The packed file of a trained network, for `mlg export` and the like.

    Raises:
        ValueError: there is no such network.

    Examples:
        >>> pretrained_path("cifar10_cnn").name
        'cifar10_cnn.mlg'
    """
    check_choice("name", name, PRETRAINED)
    return Path(__file__).with_name(f"{name}.mlg")


def load_pretrained(
    name: PretrainedName,
    *,
    residency: str = "float",
    fold: bool = False,
    implementation: ImplementationChoice = "auto",
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> Predictor:
    """A trained network, ready to classify.

    Args:
        name: a name of `PRETRAINED`.
        residency: how weights are held in memory; see `mlg_jax.load_packed` for all options.
        fold: whether norms are folded into the convolutions.
        implementation: how generated kernels are applied.
        batch_sizes: batch sizes to compile programs for.

    Returns:
        A predictor: `predictor(images)` takes uint8 `[N, 32, 32, 3]` or normalised floats and
        returns logits `[N, 10]`; `predictor.preprocessing.read(["cat.png"])` reads files.

    Raises:
        ValueError: there is no such network, or an option is invalid.

    Examples:
        >>> load_pretrained("cifar10_cnn").class_names[:3]
        ('airplane', 'automobile', 'bird')

    Reference: https://arxiv.org/abs/2108.11430; the dense network is that of
    https://arxiv.org/abs/2404.00498.
    """
    return load_packed(
        os.fspath(pretrained_path(name)),
        residency=residency,
        fold=fold,
        implementation=implementation,
        batch_sizes=batch_sizes,
    )
