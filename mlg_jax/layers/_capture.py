"""Inputs and outputs of single layers during a call of their model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import linen as nn

from mlg_jax._types import Array
from mlg_jax.layers._call import forward
from mlg_jax.layers._collections import FACTORS

Calls = list[tuple[Array, Array]]  # input and output of every call


def captured_calls(
    model: nn.Module, variables: Mapping[str, Any], x: Array, path: Sequence[str], *, train: bool
) -> Calls:
    """The inputs and outputs of one layer while the model is applied to `x`.

    Within jit, nothing is computed but what they need. Dropout is left out.

    Args:
        model: a Linen module.
        variables: its variables.
        x: its input.
        path: of the layer, a submodule with one positional input.
        train: whether norms use the statistics of the batch. Kernels that are rounded at random in
            training must be quantised beforehand (`quantized_variables`).

    Returns:
        One pair for each call of the layer, in order.
    """
    calls: Calls = []

    def watch(
        next_fun: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if isinstance(context.module, nn.Dropout):
            return args[0]
        y = next_fun(*args, **kwargs)
        # A layer that stands in for another one has the same path.
        is_inner = bool(calls) and calls[-1][1] is y
        if (
            context.module.path == tuple(path)
            and context.method_name == "__call__"
            and not is_inner
        ):
            calls.append((args[0], y))
        return y

    state = [name for name in variables if name not in ("params", FACTORS)]
    with nn.intercept_methods(watch):
        forward(model, train=train)(variables, x, **({"mutable": state} if train else {}))
    return calls
