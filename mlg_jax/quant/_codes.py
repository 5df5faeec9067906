"""Integer codes: the stored form of a quantised tensor, which decodes to `fake_quantize`'s bits."""

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
    """Integer codes in `[0, 2**bits)` and the per-tensor constants that scale them."""

    codes: Array  # shape of the tensor; uint8 up to 8 bits, otherwise uint16
    constants: tuple[Array, ...]  # r, (min, max) or E, by scheme; float32 or wider scalars
    spec: QuantSpec = flax.struct.field(pytree_node=False)
    dtype: Any = flax.struct.field(pytree_node=False)  # of the decoded values

    @property
    def num_bits(self) -> int:
        """Storage of the codes in bits, without the constants."""
        assert self.spec.bits is not None
        return self.codes.size * self.spec.bits


def encode(x: Array, spec: QuantSpec) -> QuantizedTensor:
    """Encodes `fake_quantize(x, spec)` as integers.

    Args:
        x: floating-point array of any shape, not empty.
        spec: a quantiser whose `bits` is not None.

    Returns:
        The codes and constants, from which `decode` restores the values.

    Raises:
        TypeError: `x` is not a floating-point array, or `spec` is not a QuantSpec.
        ValueError: `spec` has no bits, `x` is empty, or (checked outside jit only) a 1-bit tensor
            has an exact zero: its sign is a third value, which one bit cannot store.
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
    """Decodes to `fake_quantize(x, spec)` of the encoded `x`, bit for bit.

    The only exception is an exact zero in a 1-bit tensor that was encoded inside jit, where
    `encode` cannot reject it: it decodes to -E.
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
