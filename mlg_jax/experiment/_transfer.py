"""Transfer learning: a start from the network of another task, and the parts of it that train."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util

from mlg_jax.engine import import_torch
from mlg_jax.export import SUFFIXES, read_torch
from mlg_jax.layers import relu6_by_sign, relu_by_sign
from mlg_jax.train import CheckpointError, TrainableRule, load_variables

CLASSIFIER = "classifier"  # what every model calls the layer that gives the logits
_MAX_NAMED = 5  # arrays in an error message
_MODEL = "--config.model."
_OPTIONS = {name: f"{_MODEL}{name}=" for name in ("name", "stem", "width")}

_RULES: dict[str, TrainableRule | None] = {
    "all": None,
    "biases": lambda name: name.split("/")[-1] == "bias" or _is_classifiers(name),
    "classifier": lambda name: _is_classifiers(name),
}
_RECTIFIERS = {nn.relu: relu_by_sign, nn.relu6: relu6_by_sign}


def trainable_rule(trainable: str) -> TrainableRule | None:
    """The parameters that train, by name; None: all of them.

    Args:
        trainable: `all`; `biases`, those of layers and norms, and the whole classifier (TinyTL's
            memory-efficient modules); `classifier`, for features that stay as they are.

    Reference: https://arxiv.org/abs/2007.11622.
    """
    return _RULES[trainable]


def model_to_train(model: Any, trainable: str) -> Any:
    """The model as it is trained: with frozen weights other norms and other rectifiers.

    Norms use their running statistics. These are part of what is frozen: batches of the new task
    would move them, and to normalise by a batch's own keeps the input of every norm for the
    backward pass. Rectifiers keep signs, all that is needed then. Dropout stays on.
    """
    if trainable == "all":
        return model
    norm = model.norm and functools.partial(model.norm, statistics="running")
    return model.clone(norm=norm, act=_RECTIFIERS.get(model.act, model.act))


def transferred(
    given: str | Path,
    fresh: Mapping[str, Any],
    model: nn.Module | None = None,
    input_shape: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Variables to start from: given ones, but a classifier of other classes is fresh.

    Args:
        given: a directory of checkpoints that `train` wrote, whose best is taken; or a file with
            PyTorch's state dict, `.safetensors` or `.pth`, of the same network.
        fresh: the new model's variables, as of `init`.
        model: the new model; a file needs it.
        input_shape: `[N, H, W, C]` it is called with; None takes the model's own.

    Raises:
        CheckpointError: no such checkpoint, or an array outside the classifier that only one of
            the two has, or has in another shape; the classifier's may differ in their last axis,
            the number of classes.
    """
    if model is not None and (Path(given).is_file() or Path(given).name.endswith(SUFFIXES)):
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
    """The variables in a file of PyTorch's, for the model with as many classes as it has."""
    try:
        state = read_torch(path)
        return import_torch(state, model.spec, options=_OPTIONS, input_shape=input_shape)[1]
    except (ImportError, OSError, ValueError) as error:
        raise CheckpointError(
            f"`init_checkpoint` must hold this network, up to its number of classes; got {path}: "
            f"{error}"
        ) from error


def _check_fits(directory: str | Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises CheckpointError unless only the classifier's number of classes differs."""
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
