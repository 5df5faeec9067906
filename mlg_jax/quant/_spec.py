"""Frozen, hashable specs of weight and activation quantisers."""

import dataclasses

from mlg_jax._checks import check_choice, check_integer, check_real

MAX_BITS = 16

# Smallest number of bits of each weight scheme. With 1 bit, the `dorefa` and `dorefa_sym` grids
# are the sign, and that of `ewgs` is {0, 1}; the other schemes have no useful 1-bit grid.
MIN_BITS = {"dorefa_sym": 1, "dorefa": 1, "dorefa_pos": 2, "qnn": 2, "ewgs": 1, "tanh_norm": 1}
ACTIVATION_SCHEMES = ("normal", "dorefa")

# Recommended share of rounded entries in training for 1 to 16 bits (from the published recipe).
_RATIOS = (0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.7, 0.8, 0.83, 0.86, 0.89, 0.92, 0.95, 0.98, 0.99, 1.0)


@dataclasses.dataclass(frozen=True)
class QuantSpec:
    """A weight quantiser.

    Args:
        bits: bits per stored entry, 1 to 16. None stores 32-bit floats unchanged; it is required by
            `tanh_norm`, which does not round.
        scheme: `dorefa_sym` (tanh, symmetric; the default), `dorefa` (tanh, values in [0, 1]),
            `dorefa_pos` (tanh, values in [0, 2r], r = max |tanh(x)|), `qnn` (affine between
            minimum and maximum), `ewgs` (`dorefa` with element-wise gradient scaling) or
            `tanh_norm` (tanh(x) / max |tanh(x)|, not rounded).
        ratio: probability in (0, 1] with which an entry is rounded in training ("quant-noise").

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Reference: Multi-level in-situ generation, https://arxiv.org/abs/2108.11430; DoReFa-Net,
    https://arxiv.org/abs/1606.06160; EWGS, https://arxiv.org/abs/2104.00903; quant-noise,
    https://arxiv.org/abs/2004.07320.
    """

    bits: int | None = None
    scheme: str = "dorefa_sym"
    ratio: float = 1.0

    def __post_init__(self) -> None:
        check_choice("scheme", self.scheme, MIN_BITS)
        check_real("ratio", self.ratio, 0.0, 1.0, exclusive_minimum=True)
        if self.bits is None:
            return
        if self.scheme == "tanh_norm":
            raise ValueError(f"`bits` must be None for scheme 'tanh_norm'; got {self.bits!r}.")
        check_integer("bits", self.bits, 1, MAX_BITS)
        if self.bits < MIN_BITS[self.scheme]:
            raise ValueError(
                f"`bits` must be >= {MIN_BITS[self.scheme]} for scheme {self.scheme!r}; "
                f"got {self.bits}."
            )

    @property
    def is_identity(self) -> bool:
        """Whether the quantiser returns tensors unchanged."""
        return self.bits is None and self.scheme != "tanh_norm"

    @property
    def stored_bits(self) -> int:
        """Bits of one stored entry; 32 without quantisation."""
        return 32 if self.bits is None else self.bits


@dataclasses.dataclass(frozen=True)
class ActivationSpec:
    """An activation quantiser.

    Args:
        bits: 1 to 16; None returns activations unchanged.
        scheme: `normal` (affine over a running range) or `dorefa` (inputs clipped to [0, 1]).

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    bits: int | None = None
    scheme: str = "normal"

    def __post_init__(self) -> None:
        check_choice("scheme", self.scheme, ACTIVATION_SCHEMES)
        if self.bits is not None:
            check_integer("bits", self.bits, 1, MAX_BITS)


def recommended_ratio(bits: int) -> float:
    """The published share of entries to round in training, for `bits` from 1 to 16.

    Raises:
        TypeError, ValueError: `bits` is not an integer or out of range.
    """
    check_integer("bits", bits, 1, MAX_BITS)
    return _RATIOS[bits - 1]
