"""The shared vocabulary: array aliases, and the records by which layers describe themselves."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray

Key = PRNGKeyArray
CONV_OUTPUT = "mlg_jax_conv_output"  # the `checkpoint_name` of what convolutions give
Params = Any  # a nested mapping of parameter arrays
Initializer = Callable[[jax.Array, Sequence[int], Any], jax.Array]

__all__ = [
    "CONV_OUTPUT",
    "Array",
    "FactorRecord",
    "Float",
    "Initializer",
    "Key",
    "KernelShape",
    "LayerRecord",
    "Params",
]


@dataclasses.dataclass(frozen=True)
class KernelShape:
    """The kernel `[out_channels, in_channels, taps]` that a layer multiplies with."""

    out_channels: int  # Co
    in_channels: int  # Ci, per group
    window: tuple[int, int] | None = None  # height and width; None for a dense layer

    @property
    def taps(self) -> int:
        """k^2: the spatial positions of one kernel."""
        return 1 if self.window is None else self.window[0] * self.window[1]

    @property
    def size(self) -> int:
        """Number of entries of the whole kernel."""
        return self.out_channels * self.in_channels * self.taps

    @property
    def layout(self) -> tuple[int, ...]:
        """The shape as Flax stores it: `[height, width, in, out]`, dense layers `[in, out]`."""
        return (*(self.window or ()), self.in_channels, self.out_channels)


@dataclasses.dataclass(frozen=True)
class FactorRecord:
    """One stored parameter array of a layer."""

    name: str  # its key in the layer's parameter mapping
    shape: tuple[int, ...]
    bits: int | None = None  # width of one stored entry; None: not quantised, 32 bits
    scheme: str | None = None  # of the quantiser; None: there is none

    @property
    def num_params(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def num_bits(self) -> int:
        """ResidualPolicy, in bits."""
        return self.num_params * (32 if self.bits is None else self.bits)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LayerRecord:
    """What a layer is made of: all that accounting, export, projection and penalties read."""

    path: tuple[str, ...]  # module path, outermost first
    kind: str  # "conv" | "dense" | "norm"
    factors: tuple[FactorRecord, ...]  # every parameter of the layer
    kernel: KernelShape | None = None  # the kernel that the factors stand for; None for norms
    provider: Any = None  # the frozen spec the kernel is built by; None for norms
    groups: int = 1
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], ...] = ()
    input_shape: tuple[int, ...] = ()  # of the call that the record is of
    implementation: str | None = (
        None  # how a generated kernel is applied; None: it is not generated
    )

    @property
    def name(self) -> str:
        """The path joined by slashes."""
        return "/".join(self.path)

    @property
    def factor_names(self) -> tuple[str, ...]:
        """The keys of the stored arrays."""
        return tuple(factor.name for factor in self.factors)

    @property
    def num_params(self) -> int:
        """Number of stored entries."""
        return sum(factor.num_params for factor in self.factors)

    @property
    def num_bits(self) -> int:
        """ResidualPolicy of the layer, in bits."""
        return sum(factor.num_bits for factor in self.factors)

    @property
    def num_dense_params(self) -> int:
        """Entries of the same layer with an ordinary kernel."""
        if self.kernel is None:
            return self.num_params
        bias = sum(f.num_params for f in self.factors if f.name == "bias")
        return self.kernel.size + bias
