"""Integer codes and their scale: the stored form of a quantised tensor, bit-exact with `_fake`."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mlg_jax._checks import check_floating, check_instance
from mlg_jax._types import Array
from mlg_jax.quant._schemes import constants_of, is_sign_grid, scheme_of, wide
from mlg_jax.quant._spec import QuantSpec
from mlg_jax.quant._ste import num_steps, to_grid


@flax.struct.dataclass
class QuantizedTensor:
    """Integer codes in `[0, 2**bits)` and the per-tensor constants that give them values."""

    codes: Array  # uint8 up to 8 bits, else uint16; the tensor's shape
    constants: tuple[Array, ...]  # r | (min, max) | E: float32 scalars
    spec: QuantSpec = flax.struct.field(pytree_node=False)
    dtype: Any = flax.struct.field(pytree_node=False)  # of the decoded values

    @property
    def num_bits(self) -> int:
        """ResidualPolicy of the codes, in bits, scales not counted."""
        assert self.spec.bits is not None
        return self.codes.size * self.spec.bits


def encode(x: Array, spec: QuantSpec) -> QuantizedTensor:
    """Integer codes of `fake_quantize(x, spec)`.

    Args:
        x: floating, any shape, not empty.
        spec: a quantiser with bits.

    Raises:
        TypeError: `x` is not floating.
        ValueError: the spec has no bits, `x` is empty, or (outside jit) a one-bit tensor holds an
            exact zero, whose sign takes a third value that one bit cannot hold.
    """
    check_floating("x", x)
    check_instance("spec", spec, QuantSpec)
    if spec.bits is None:
        raise ValueError(f"`spec` must have `bits` to be stored as codes; got {spec!r}.")
    if jnp.size(x) == 0:
        raise ValueError(f"`x` must not be empty; got shape {jnp.shape(x)}.")
    scheme = scheme_of(spec)
    wide_x = wide(x)
    constants = constants_of(scheme, wide_x)
    grid = scheme.round_unit(scheme.to_unit(wide_x, *constants), spec.bits)
    if is_sign_grid(spec):
        _refuse_zeros(grid)
        levels = (grid + 1.0) / 2.0
    else:
        levels = jnp.round(grid * num_steps(spec.bits))
    storage = jnp.uint8 if spec.bits <= 8 else jnp.uint16
    return QuantizedTensor(levels.astype(storage), constants, spec, jnp.result_type(x))


def decode(tensor: QuantizedTensor) -> Array:
    """The values of the codes: `fake_quantize` of what was encoded, bit for bit.

    The one exception is a zero in one bit, which `encode` refuses, but cannot see inside jit; it
    decodes to -E.
    """
    spec, scheme = tensor.spec, scheme_of(tensor.spec)
    assert spec.bits is not None
    levels = tensor.codes.astype(tensor.constants[0].dtype)
    grid = 2.0 * levels - 1.0 if is_sign_grid(spec) else to_grid(levels, spec.bits)
    return scheme.to_value(grid, *tensor.constants).astype(tensor.dtype)


def _refuse_zeros(grid: Array) -> None:
    if isinstance(grid, jax.core.Tracer):
        return
    num_zeros = int(np.sum(np.asarray(grid) == 0))
    if num_zeros:
        raise ValueError(
            f"`x` must have no exact zeros to be stored in 1 bit (sign(0) = 0 is a third value); "
            f"got {num_zeros} of {grid.size}."
        )
