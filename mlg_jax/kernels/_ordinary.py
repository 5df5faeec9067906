"""The ordinary kernel, stored entry by entry and optionally quantised as a whole."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from mlg_jax._checks import check_choice, check_instance
from mlg_jax._convolution import convolve_as
from mlg_jax._linear_vjp import weight_grad_first
from mlg_jax._types import Array, LayerGeometry
from mlg_jax.kernels._kernel import Factor, Factors, Kernel, KernelSpec
from mlg_jax.kernels._torch import TorchModule, take_weight
from mlg_jax.quant import QuantSpec

FANS = ("in", "out")


@dataclasses.dataclass(frozen=True)
class OrdinarySpec(KernelSpec, kind="ordinary"):
    """The kernel `W` itself is the parameter.

    Args:
        quant: quantiser of the whole kernel; few bits give the low-bit baseline.
        fan: He's fan for the initial deviation `sqrt(2 / fan)`: `out` (convolutions) or `in`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    implementations = ()  # there is nothing to choose
    quant: QuantSpec = QuantSpec()
    fan: str = "out"

    def __post_init__(self) -> None:
        check_instance("quant", self.quant, QuantSpec)
        check_choice("fan", self.fan, FANS)

    def bind(self, layer: LayerGeometry) -> "OrdinaryKernel":
        """Applies to every kernel."""
        return OrdinaryKernel(self, layer)


@dataclasses.dataclass(frozen=True)
class OrdinaryKernel(Kernel):
    """A kernel with a single factor, the kernel itself."""

    spec: OrdinarySpec

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The kernel in Flax's layout."""
        shape = self.layer.kernel_shape
        channels = shape.out_channels if self.spec.fan == "out" else shape.in_channels
        init = jax.nn.initializers.normal(math.sqrt(2.0 / (channels * shape.taps)))
        return (Factor("kernel", shape.layout, self.spec.quant, init),)

    def build(self, factors: Factors) -> Array:
        """The kernel itself."""
        return factors["kernel"]

    def apply(self, factors: Factors, x: Array, implementation: str | None = None) -> Array:
        """The plain product; the kernel is a parameter, so it is not rebuilt."""

        def run(kernel: Array, x: Array) -> Array:
            return convolve_as(self.layer, x, kernel.astype(x.dtype))

        return weight_grad_first(run)(factors["kernel"], x)

    def project(self, kernel: Array, *, clip: bool = False) -> dict[str, Array]:
        """Exact, up to quantisation."""
        return self.to_params({"kernel": kernel}, clip=clip)

    def scale_outputs(self, factors: Factors, gain: Any) -> dict[str, Any]:
        """Scales the last axis, the output channels."""
        return {"kernel": factors["kernel"] * gain}

    def from_torch(self, module: TorchModule) -> dict[str, np.ndarray]:
        """PyTorch's weight, transposed to Flax's layout."""
        weight = take_weight(module, self.layer.kernel_shape)
        return {"kernel": weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0)}
