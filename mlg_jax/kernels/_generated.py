"""Kernels of the MLG method, generated from bases and coefficients at two levels: `W = V (U B)`."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlg_jax._checks import check_choice, check_floating, check_instance, check_integer
from mlg_jax._convolution import from_layout
from mlg_jax._types import Array, Float, KernelShape, LayerGeometry
from mlg_jax.generation import (
    FactorShapes,
    ProjectedFactors,
    apply_factored,
    apply_factored_out,
    balance_peaks,
    choose_implementation,
    closed_form,
    decompose,
    distinct_implementations,
    factor_shapes,
    orthogonality_penalty,
    pad_bases,
    taps_first,
)
from mlg_jax.kernels._kernel import GENERATE, Factor, Factors, Kernel, KernelSpec
from mlg_jax.kernels._torch import TorchModule, take_weight
from mlg_jax.quant import TANH_SCHEMES, QuantSpec

INITS = ("fan_out", "variance")
_UNQUANTIZED = QuantSpec()
_APPLY = {"factored_out": apply_factored_out, "factored": apply_factored}


@dataclasses.dataclass(frozen=True)
class GenerationSpec(KernelSpec, kind="generated"):
    """How the kernels of a network are generated: `W = V (U B)`.

    Args:
        base_in: Bi, number of basis kernels per base; 0 omits level 1.
        base_out: Bo, number of bases; 0 omits level 2.
        basis, coeff_in, coeff_out: quantisers of B, U and V.
        init: `fan_out` gives every factor He's deviation for its own fan-out, as published;
            `variance` rescales all factors equally so that the *product* has He's variance.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Examples:
        >>> paper = GenerationSpec.from_bits(2, 44, 3, 6, 3)  # written "2-44-3-6-3"

    Reference: https://arxiv.org/abs/2108.11430.
    """

    implementations = (GENERATE, *_APPLY)
    base_in: int
    base_out: int
    basis: QuantSpec = QuantSpec()
    coeff_in: QuantSpec = QuantSpec()
    coeff_out: QuantSpec = QuantSpec()
    init: str = "fan_out"

    def __post_init__(self) -> None:
        check_integer("base_in", self.base_in, 0)
        check_integer("base_out", self.base_out, 0)
        for name in FactorShapes._fields:
            check_instance(name, getattr(self, name), QuantSpec)
        check_choice("init", self.init, INITS)

    @classmethod
    def from_bits(
        cls,
        base_in: int,
        base_out: int,
        basis_bits: int | None = None,
        coeff_in_bits: int | None = None,
        coeff_out_bits: int | None = None,
    ) -> "GenerationSpec":
        """The spec written "Bi-Bo-qb-qu-qv" in the paper, with the default scheme."""
        basis, coeff_in, coeff_out = map(QuantSpec, (basis_bits, coeff_in_bits, coeff_out_bits))
        return cls(base_in, base_out, basis, coeff_in, coeff_out)

    def notation(self, *, unquantized: str = "32") -> str:
        """The paper's "Bi-Bo-qb-qu-qv", with `unquantized` as the width of unquantised factors."""
        widths = (self.basis.bits, self.coeff_in.bits, self.coeff_out.bits)
        bits = (unquantized if b is None else b for b in widths)
        return "-".join(map(str, (self.base_in, self.base_out, *bits)))

    def bind(self, layer: LayerGeometry) -> "GeneratedKernel | None":
        """Applies if at least one level does."""
        kernel = GeneratedKernel(self, layer)
        return None if self.resolve(layer.kernel_shape) is None else kernel

    def resolve(self, shape: KernelShape) -> FactorShapes | None:
        """The shapes of the factors; None if neither level applies."""
        return factor_shapes(self.base_in, self.base_out, shape)


@dataclasses.dataclass(frozen=True)
class GeneratedKernel(Kernel):
    """Bases `basis` [Bo, Bi, K], coefficients `coeff_in` [Bo, Ci, Bi] and `coeff_out` [Co, Bo].

    A level that does not apply to the shape has no coefficients.
    """

    spec: GenerationSpec

    @functools.cached_property
    def shapes(self) -> FactorShapes:
        """The shapes of the factors."""
        shapes = self.spec.resolve(self.layer.kernel_shape)
        assert shapes is not None, "`bind` refuses such layers"
        return shapes

    @functools.cached_property
    def factors(self) -> tuple[Factor, ...]:
        """B, and U and V if their level exists."""
        present = {n: s for n, s in self.shapes._asdict().items() if s is not None}
        deviations = _deviations(self.spec.init, self.shapes, self.layer.kernel_shape)
        normal = jax.nn.initializers.normal
        return tuple(
            Factor(name, shape, getattr(self.spec, name), normal(deviations[name]))
            for name, shape in present.items()
        )

    def build(self, factors: Factors) -> Array:
        """`W = V (U B)`."""
        factors = pad_bases(factors, factors["basis"].dtype)
        kernel = jnp.moveaxis(taps_first(*_arguments(factors)), 0, -1)
        return kernel.reshape(self.layer.kernel_shape.layout)

    @property
    def implementations(self) -> tuple[str, ...]:
        """The implementations that are different programs for the existing levels."""
        return distinct_implementations(self.shapes)

    def choose_implementation(self, dtype: Any, *, is_training: bool) -> str:
        """The fastest for the layer's shapes, as predicted by a calibrated cost model."""
        return choose_implementation(self.shapes, self.layer, dtype, is_training=is_training)

    def canonical(self, implementation: str) -> str:
        """Merges names of the same program.

        Without level 1, `factored` becomes `factored_out`; without level 2, `factored_out` becomes
        `generate`.
        """
        if implementation == "factored" and self.shapes.coeff_in is None:
            return "factored_out"
        return super().canonical(implementation)

    def apply(self, factors: Factors, x: Array, implementation: str | None) -> Array:
        """`generate` builds W and convolves; the others apply the factors one after another."""
        if implementation in (None, GENERATE):
            return super().apply(factors, x, implementation)
        check_choice("implementation", implementation, (GENERATE, *_APPLY))
        return _APPLY[str(implementation)](factors, x, self.layer)

    def penalty(self, factors: Factors) -> Array:
        """The orthogonality penalty."""
        return orthogonality_penalty(*_arguments(factors))

    def project(self, kernel: Array, *, clip: bool = False) -> dict[str, Array]:
        """Truncated singular value decompositions, with the factors of every base balanced.

        Without `clip`, their largest entries are made equal, as published; with `clip`, their
        deviations are, and the computation runs on the host.
        """
        rows = from_layout(kernel)
        if clip:
            on_host = closed_form(np.asarray(rows, np.float32), self.shapes)
            return self.to_params(on_host, clip=True)
        values = {n: v for n, v in decompose(rows, self.shapes)._asdict().items() if v is not None}
        bounded = {f.name for f in self.factors if _is_bounded(f.quant)}
        return self.to_params(balance_peaks(values, bounded))

    def scale_outputs(self, factors: Factors, gain: Any) -> dict[str, Any]:
        """Scales the rows of V, or without level 2 the bases, of which each channel has one."""
        if "coeff_out" in factors:
            return {**factors, "coeff_out": factors["coeff_out"] * gain[:, None]}
        return {**factors, "basis": factors["basis"] * gain[:, None, None]}

    def from_torch(self, module: TorchModule) -> dict[str, np.ndarray]:
        """The original code stores B in a corner of the full weight, or as `basis`."""
        return {f.name: self._take(module, f) for f in self.factors}

    def _take(self, module: TorchModule, factor: Factor) -> np.ndarray:
        if factor.name != "basis":
            return module.take(factor.name, factor.shape)
        (num_bases, rows, _), shape = factor.shape, self.layer.kernel_shape
        if module.has("basis"):
            basis = module.take("basis", (num_bases, rows, *(shape.window or ())))
        else:
            basis = take_weight(module, shape)[:num_bases, :rows]
        return basis.reshape(factor.shape)


def project_kernel(kernel: Float[Array, "o c k"], spec: GenerationSpec) -> ProjectedFactors:
    """Factors whose unquantised product approximates `kernel`.

    Level 2: truncated SVD of the matrix `[Co, Ci K]`, whose left singular vectors are V.
    Level 1: truncated SVD of each of the Bo remaining matrices `[Ci, K]` to rank Bi, whose singular
    values go to U.

    Args:
        kernel: `[Co, Ci, K]`, floating.
        spec: the requested bases; its bits are not used.

    Returns:
        `(basis, coeff_in, coeff_out)`, or `(kernel, None, None)` if neither level applies.

    Raises:
        TypeError: `kernel` is not floating or `spec` is not a GenerationSpec.
        ValueError: `kernel` is not three-dimensional or is empty.

    Reference: https://arxiv.org/abs/2108.11430 ("SVD init").
    """
    check_floating("kernel", kernel)
    check_instance("spec", spec, GenerationSpec)
    if jnp.ndim(kernel) != 3 or jnp.size(kernel) == 0:
        raise ValueError(
            f"`kernel` must have shape [Co, Ci, K] with sizes > 0; got {jnp.shape(kernel)}."
        )
    out_channels, in_channels, taps = jnp.shape(kernel)
    shapes = spec.resolve(KernelShape(out_channels, in_channels, (taps, 1)))
    return ProjectedFactors(kernel, None, None) if shapes is None else decompose(kernel, shapes)


def bsconv_u(*, basis: QuantSpec = _UNQUANTIZED, coeff: QuantSpec = _UNQUANTIZED) -> GenerationSpec:
    """Blueprint separable convolution (BSConv-U): a basis kernel per output channel, weighted.

    This is the MLG method with `Bi = 1` and no level 2.

    Args:
        basis: quantiser of the basis kernels, `[Co, 1, K]`.
        coeff: quantiser of their weights, `[Co, Ci, 1]`.

    Reference: https://arxiv.org/abs/2003.13549.
    """
    return GenerationSpec(1, 0, basis, coeff)


def _arguments(factors: Factors) -> tuple[Any, ...]:
    return tuple(factors.get(name) for name in FactorShapes._fields)


def _is_bounded(quant: QuantSpec) -> bool:
    return quant.bits is not None and quant.scheme in TANH_SCHEMES


def _deviations(init: str, shapes: FactorShapes, kernel: KernelShape) -> dict[str, float]:
    """Standard deviations of the initial factors."""
    num_bases, base_in, _ = shapes.basis
    if shapes.coeff_in is None:
        base_in = 1  # the basis is multiplied by V alone
    he_variance = 2.0 / (kernel.out_channels * kernel.taps)
    variances = {
        "basis": he_variance,
        "coeff_in": 2.0 / (num_bases * base_in),
        "coeff_out": 2.0 / kernel.out_channels,
    }
    if init == "variance":
        # A sum of n products of independent factors has n times the product of their variances.
        present = [variances[name] for name, shape in shapes._asdict().items() if shape is not None]
        num_terms = (num_bases if shapes.coeff_out else 1) * base_in
        correction = he_variance / (num_terms * math.prod(present))
        variances = {n: v * correction ** (1.0 / len(present)) for n, v in variances.items()}
    return {name: math.sqrt(variance) for name, variance in variances.items()}
