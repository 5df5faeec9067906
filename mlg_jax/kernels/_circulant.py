"""Block-circulant kernels (CirCNN): in a block of channels, each row is the last one rotated."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from mlg_jax._checks import check_instance, check_integer
from mlg_jax._convolution import to_layout
from mlg_jax._types import Array, LayerGeometry
from mlg_jax.kernels._kernel import Factor, Factors, Kernel, KernelSpec
from mlg_jax.quant import QuantSpec


@dataclasses.dataclass(frozen=True)
class CirculantSpec(KernelSpec, kind="circulant"):
    """`W[p b + i, q b + j, k] = blocks[p, q, (i - j) mod b, k]` for blocks of `b x b` channels.

    Args:
        block_size: b; the spec applies to kernels whose channel counts it divides. 1 gives the
            ordinary kernel.
        blocks: quantiser of the first columns of all blocks, which are stored.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Reference: CirCNN, https://arxiv.org/abs/1708.08917.
    """

    block_size: int
    blocks: QuantSpec = QuantSpec()

    def __post_init__(self) -> None:
        check_integer("block_size", self.block_size, 1)
        check_instance("blocks", self.blocks, QuantSpec)

    def bind(self, layer: LayerGeometry) -> "CirculantKernel | None":
        """Applies if the block size divides both channel counts."""
        shape = layer.kernel_shape
        is_whole = shape.in_channels % self.block_size == shape.out_channels % self.block_size == 0
        return CirculantKernel(self, layer) if is_whole else None


@dataclasses.dataclass(frozen=True)
class CirculantKernel(Kernel):
    """Stores the first column of every block, a fraction `1 / block_size` of the kernel."""

    spec: CirculantSpec

    @property
    def factors(self) -> tuple[Factor, ...]:
        """`blocks`, [Co / b, Ci / b, b, K]."""
        shape, size = self.layer.kernel_shape, self.spec.block_size
        stored = (shape.out_channels // size, shape.in_channels // size, size, shape.taps)
        deviation = math.sqrt(2.0 / (shape.out_channels * shape.taps))
        init = jax.nn.initializers.normal(deviation)
        return (Factor("blocks", stored, self.spec.blocks, init),)

    def build(self, factors: Factors) -> Array:
        """Expands every block by rotating its first column."""
        size = self.spec.block_size
        i, j = jnp.ogrid[:size, :size]
        whole = factors["blocks"][:, :, (i - j) % size]  # [P, Q, b, b, K]
        shape = self.layer.kernel_shape
        kernel = jnp.swapaxes(whole, 1, 2).reshape(shape.out_channels, shape.in_channels, -1)
        return to_layout(kernel, shape)
