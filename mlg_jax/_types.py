"""The shared vocabulary: array aliases, kernel shapes and the geometry of layers."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray

Key = PRNGKeyArray
CONV_OUTPUT = "mlg_jax_conv_output"  # the `checkpoint_name` of the outputs of convolutions
Params = Any  # a nested mapping of parameter arrays
Initializer = Callable[[jax.Array, Sequence[int], Any], jax.Array]

__all__ = [
    "CONV_OUTPUT",
    "Array",
    "Float",
    "Initializer",
    "Key",
    "KernelShape",
    "LayerGeometry",
    "Params",
]


@dataclasses.dataclass(frozen=True)
class KernelShape:
    """The shape of the kernel `[out_channels, in_channels, taps]` of a layer."""

    out_channels: int  # Co
    in_channels: int  # Ci, per group
    window: tuple[int, int] | None = None  # height and width; None for a dense layer

    @property
    def taps(self) -> int:
        """K: the number of spatial positions of one kernel."""
        return 1 if self.window is None else self.window[0] * self.window[1]

    @property
    def size(self) -> int:
        """Number of entries of the whole kernel."""
        return self.out_channels * self.in_channels * self.taps

    @property
    def layout(self) -> tuple[int, ...]:
        """The shape as Flax stores it: `[height, width, in, out]`, or `[in, out]` if dense."""
        return (*(self.window or ()), self.in_channels, self.out_channels)


@dataclasses.dataclass(frozen=True)
class LayerGeometry:
    """A layer without its parameters: its path and the product that it computes."""

    path: tuple[str, ...] = ()  # module path, outermost first
    kind: str = "conv"  # "conv" | "dense" | "norm" | "other"
    shape: KernelShape | None = None  # of the kernel; None for layers without one
    groups: int = 1
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], ...] = ()
    input_shape: tuple[int, ...] = ()  # in the call from which the layer is recorded

    @property
    def name(self) -> str:
        """The path joined by slashes."""
        return "/".join(self.path)

    @property
    def kernel_shape(self) -> KernelShape:
        """`shape` of a layer that is known to have a kernel."""
        assert self.shape is not None, f"{self.name} has no kernel"
        return self.shape
