"""Transfer learning: initial variables from another task, and the parameters that train."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util

from mlg_jax.engine import import_torch, trained_network
from mlg_jax.export import PACKED_SUFFIX, SUFFIXES, read_packed, read_torch
from mlg_jax.layers import relu6_by_sign, relu_by_sign
from mlg_jax.models import with_layers
from mlg_jax.train import CheckpointError, TrainableRule, load_variables

CLASSIFIER = "classifier"  # the name of the last layer in every model
_MAX_NAMED = 5  # arrays listed in an error message
_MODEL = "--config.model."
_OPTIONS = {name: f"{_MODEL}{name}=" for name in ("name", "stem", "width")}

_RULES: dict[str, TrainableRule | None] = {
    "all": None,
    "biases": lambda name: name.split("/")[-1] == "bias" or _is_classifiers(name),
    "classifier": lambda name: _is_classifiers(name),
}
_RECTIFIERS = {nn.relu: relu_by_sign, nn.relu6: relu6_by_sign}


def trainable_rule(trainable: str) -> TrainableRule | None:
    """Which parameters train, by name; None trains all.

    Args:
        trainable: `all`; `biases`, those of layers and norms, and the whole classifier (as in
            TinyTL); `classifier`, which leaves the features unchanged.

    Reference: https://arxiv.org/abs/2007.11622.
    """
    return _RULES[trainable]


def model_to_train(model: Any, trainable: str) -> Any:
    """The model as it is trained; frozen weights need other norms and rectifiers.

    Norms use their running statistics, which are frozen too: batches of the new task would change
    them, and normalising by batch statistics would save the input of every norm for the backward
    pass. Rectifiers only save signs, which is all that their gradient needs. Dropout stays on.
    """
    if trainable == "all":
        return model
    norm, act = model.layers.norm, model.layers.act
    frozen = norm and functools.partial(norm, statistics="running")
    return with_layers(model, norm=frozen, act=_RECTIFIERS.get(act, act))


def transferred(
    given: str | Path,
    fresh: Mapping[str, Any],
    model: nn.Module | None = None,
    input_shape: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Initial variables from another training; a classifier for other classes is fresh.

    Args:
        given: a directory of checkpoints that `train` wrote, of which the best is used; or a file
            with a PyTorch state dict of the same network, `.safetensors` or `.pth`; or a packed
            model of it, `.mlg`, whose kernels are built.
        fresh: the new model's variables from `init`.
        model: the new model; required for a file.
        input_shape: the model's input shape `[N, H, W, C]`; None is its default.

    Raises:
        CheckpointError: the checkpoint is missing, or an array exists on one side only or differs
            in shape. The classifier's arrays may differ in their last axis, the number of classes.
    """
    files = (*SUFFIXES, PACKED_SUFFIX)
    if model is not None and (Path(given).is_file() or Path(given).name.endswith(files)):
        variables = _imported(Path(given), model, input_shape)
    else:
        params, state, _ = load_variables(given)
        variables = {"params": params, **state}
    found = traverse_util.flatten_dict(variables, sep="/")
    wanted = traverse_util.flatten_dict(dict(fresh), sep="/")
    _check_fits(given, found, wanted)
    is_fresh = any(np.shape(found[name]) != np.shape(wanted[name]) for name in wanted)
    chosen = {
        name: value if is_fresh and _is_classifiers(name.partition("/")[2]) else found[name]
        for name, value in wanted.items()
    }
    return traverse_util.unflatten_dict(chosen, sep="/")


def _imported(path: Path, model: Any, input_shape: Sequence[int] | None) -> dict[str, Any]:
    """The variables in a PyTorch or packed file, with the number of classes of that file."""
    try:
        if path.name.endswith(PACKED_SUFFIX):
            return trained_network(read_packed(path), name=str(path))[1]
        state = read_torch(path)
        return import_torch(state, model.spec, options=_OPTIONS, input_shape=input_shape)[1]
    except (ImportError, OSError, ValueError) as error:
        raise CheckpointError(
            f"`init_checkpoint` must hold this network, up to its number of classes; got {path}: "
            f"{error}"
        ) from error


def _check_fits(directory: str | Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises CheckpointError if more than the classifier's number of classes differs."""
    wrong = [
        f"{name} is {_shape(found, name)} there and {_shape(wanted, name)} here"
        for name in sorted({*found, *wanted})
        if not _is_usable(name, found, wanted)
    ]
    if wrong:
        more = [f"{len(wrong) - _MAX_NAMED} more"] if len(wrong) > _MAX_NAMED else []
        raise CheckpointError(
            f"`init_checkpoint` must hold this network, up to its number of classes; got another "
            f"in {directory}: {'; '.join([*wrong[:_MAX_NAMED], *more])}."
        )


def _is_usable(name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    if name not in found or name not in wanted:
        return False
    shapes = np.shape(found[name]), np.shape(wanted[name])
    if not _is_classifiers(name.partition("/")[2]):
        return shapes[0] == shapes[1]
    return shapes[0][:-1] == shapes[1][:-1]


def _is_classifiers(name: str) -> bool:
    return name.split("/")[0] == CLASSIFIER


def _shape(arrays: Mapping[str, Any], name: str) -> str:
    return str(np.shape(arrays[name])) if name in arrays else "absent"
