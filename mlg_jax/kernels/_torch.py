"""The view of a PyTorch module from which a kernel takes its parameters."""

from typing import Protocol

import numpy as np

from mlg_jax._types import KernelShape


class TorchModule(Protocol):
    """The arrays of one module of a PyTorch state dict."""

    def has(self, name: str) -> bool:
        """Whether there is an array of that name."""

    def take(self, name: str, *shapes: tuple[int, ...]) -> np.ndarray:
        """The array, which must have one of `shapes`, reshaped to the first of them."""


def take_weight(module: TorchModule, shape: KernelShape) -> np.ndarray:
    """The ordinary weight, `[out, in, height, width]`, or `[out, in]` for a dense layer.

    A dense layer's weight may be stored as that of a 1 x 1 convolution.
    """
    channels = (shape.out_channels, shape.in_channels)
    if shape.window is None:
        return module.take("weight", channels, (*channels, 1, 1))
    return module.take("weight", (*channels, *shape.window))
