"""How Linen models are called: their input shape, and the argument for training or evaluation."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn

from mlg_jax._checks import check_instance
from mlg_jax.layers._generated import Generated

_TRAINED = ("train", "training", "is_training")
_NOT_TRAINED = ("deterministic", "use_running_average")


def mode_options(model: nn.Module, *, train: bool) -> dict[str, Any]:
    """The keyword argument that tells `model` whether it is being trained.

    Its `__call__` may name it `train`, `training` or `is_training`, or, negated, `deterministic`
    or `use_running_average`. For a model with none of these, the result is empty.
    """
    if isinstance(model, Generated):
        return mode_options(model.model, train=train)
    parameters = inspect.signature(type(model).__call__).parameters
    options = dict.fromkeys(_TRAINED, train) | dict.fromkeys(_NOT_TRAINED, not train)
    return {name: value for name, value in options.items() if name in parameters}


def forward(model: nn.Module, *, train: bool) -> Callable[..., Any]:
    """`model.apply` for training or evaluation: `(variables, x, **options) -> outputs`."""
    options = mode_options(model, train=train)
    return lambda variables, x, **more: model.apply(variables, x, **options, **more)


def input_shape_of(model: nn.Module, input_shape: Sequence[int] | None = None) -> tuple[int, ...]:
    """`input_shape`, or the model's own if it is None.

    Raises:
        ValueError: `input_shape` is None and the model does not have its own.
    """
    check_instance("model", model, nn.Module)
    shape = getattr(model, "input_shape", None) if input_shape is None else input_shape
    if shape is None:
        raise ValueError(
            f"`input_shape` must be given, as a {type(model).__name__} does not name its own; "
            "got None."
        )
    return tuple(shape)


def init(model: nn.Module, key: Any, x: Any) -> Any:
    """Initial variables, in evaluation mode: `params` is the only random stream needed."""
    return model.init(key, x, **mode_options(model, train=False))


def random_streams(key: Any) -> dict[str, Any]:
    """The random streams that a model needs in training, independent of each other."""
    return {"quantize": key, "dropout": jax.random.fold_in(key, 1)}
