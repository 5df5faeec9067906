"""Kernels generated from bases and coefficients at two levels, the MLG method: `W = V (U B)`."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlg_jax._checks import check_choice, check_floating, check_instance, check_integer
from mlg_jax._convolution import from_layout, to_layout
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
    generate_kernel,
    orthogonality_penalty,
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
        base_in: Bi, basis kernels within one base; 0 leaves level 1 out.
        base_out: Bo, bases across kernels; 0 leaves level 2 out.
        basis, coeff_in, coeff_out: quantisers of B, U and V.
        init: `fan_out` gives every factor He's deviation over its own fan-out, as published;
            `variance` scales the three alike so that the *product* has He's variance.

    Raises:
        TypeError, ValueError: an argument of another type or out of range.

    Example:
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
        """The paper's "Bi-Bo-qb-qu-qv", with `unquantized` where a factor has no bits."""
        widths = (self.basis.bits, self.coeff_in.bits, self.coeff_out.bits)
        bits = (unquantized if b is None else b for b in widths)
        return "-".join(map(str, (self.base_in, self.base_out, *bits)))

    def bind(self, layer: LayerGeometry) -> "GeneratedKernel | None":
        """Applies where at least one level does."""
        kernel = GeneratedKernel(self, layer)
        return None if self.resolve(layer.kernel_shape) is None else kernel

    def resolve(self, shape: KernelShape) -> FactorShapes | None:
        """The shapes of the factors; None where neither level applies."""
        return factor_shapes(self.base_in, self.base_out, shape)


@dataclasses.dataclass(frozen=True)
class GeneratedKernel(Kernel):
    """Bases `basis` [Bo, Bi, K], coefficients `coeff_in` [Bo, Ci, Bi] and `coeff_out` [Co, Bo].

    A level that does not apply to the shape has no coefficients.
    """

    spec: GenerationSpec

    @functools.cached_property
    def shapes(self) -> FactorShapes:
        """Of the factors."""
        shapes = self.spec.resolve(self.layer.kernel_shape)
        assert shapes is not None, "`bind` refuses such layers"
        return shapes

    @functools.cached_property
    def factors(self) -> tuple[Factor, ...]:
        """B, U and V, as far as they exist."""
        present = {n: s for n, s in self.shapes._asdict().items() if s is not None}
        deviations = _deviations(self.spec.init, self.shapes, self.layer.kernel_shape)
        normal = jax.nn.initializers.normal
        return tuple(
            Factor(name, shape, getattr(self.spec, name), normal(deviations[name]))
            for name, shape in present.items()
        )

    def build(self, factors: Factors) -> Array:
        """`W = V (U B)`."""
        return to_layout(generate_kernel(*_arguments(factors)), self.layer.kernel_shape)

    @property
    def implementations(self) -> tuple[str, ...]:
        """Those that differ for these levels."""
        return distinct_implementations(self.shapes)

    def choose_implementation(self, dtype: Any, *, is_training: bool) -> str:
        """The fastest for the shapes, by a calibrated cost model."""
        return choose_implementation(self.shapes, self.layer, dtype, is_training=is_training)

    def canonical(self, implementation: str) -> str:
        """Without level 1, `factored` is `factored_out`; without level 2, that is `generate`."""
        if implementation == "factored" and self.shapes.coeff_in is None:
            return "factored_out"
        return super().canonical(implementation)

    def apply(self, factors: Factors, x: Array, implementation: str | None) -> Array:
        """`generate` builds W and convolves; the others multiply by the factors in turn."""
        if implementation in (None, GENERATE):
            return super().apply(factors, x, implementation)
        check_choice("implementation", implementation, (GENERATE, *_APPLY))
        return _APPLY[str(implementation)](factors, x, self.layer)

    def penalty(self, factors: Factors) -> Array:
        """The orthogonality penalty."""
        return orthogonality_penalty(*_arguments(factors))

    def project(self, kernel: Array, *, clip: bool = False) -> dict[str, Array]:
        """Truncated singular value decompositions; base by base, factors of equal size.

        Without `clip` the largest entries are equal, as published; with it the deviations are, and
        the computation takes place on the host.
        """
        rows = from_layout(kernel)
        if clip:
            on_host = closed_form(np.asarray(rows, np.float32), self.shapes)
            return self.to_params(on_host, clip=True)
        values = {n: v for n, v in decompose(rows, self.shapes)._asdict().items() if v is not None}
        bounded = {f.name for f in self.factors if _is_bounded(f.quant)}
        return self.to_params(balance_peaks(values, bounded))

    def scale_outputs(self, factors: Factors, gain: Any) -> dict[str, Any]:
        """V has a row per output channel; without level 2 there is one base per channel."""
        if "coeff_out" in factors:
            return {**factors, "coeff_out": factors["coeff_out"] * gain[:, None]}
        return {**factors, "basis": factors["basis"] * gain[:, None, None]}

    def from_torch(self, module: TorchModule) -> dict[str, np.ndarray]:
        """The original code keeps B in a corner of the full weight, or under its own name."""
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
    """The factors whose unquantised product is near `kernel`.

    Level 2: the truncated decomposition of the matrix `[Co, Ci K]`, left vectors on V.
    Level 1: each of the Bo remaining matrices `[Ci, K]` truncated to rank Bi, singular values on U.

    Args:
        kernel: `[Co, Ci, K]`, floating.
        spec: the requested bases; its bits are not used.

    Returns:
        `(basis, coeff_in, coeff_out)`; where neither level applies `(kernel, None, None)`.

    Raises:
        TypeError: `kernel` is not floating or `spec` is not a GenerationSpec.
        ValueError: `kernel` has another rank than 3 or is empty.

    Reference: https://arxiv.org/abs/2108.11430 ("SVD init").
    """
    check_floating("kernel", kernel)
    check_instance("spec", spec, GenerationSpec)
    if jnp.ndim(kernel) != 3 or jnp.size(kernel) == 0:
        raise ValueError(
            f"`kernel` must have shape [Co, Ci, K] without zeros; got {jnp.shape(kernel)}."
        )
    out_channels, in_channels, taps = jnp.shape(kernel)
    shapes = spec.resolve(KernelShape(out_channels, in_channels, (taps, 1)))
    return ProjectedFactors(kernel, None, None) if shapes is None else decompose(kernel, shapes)


def bsconv_u(*, basis: QuantSpec = _UNQUANTIZED, coeff: QuantSpec = _UNQUANTIZED) -> GenerationSpec:
    """Blueprint-separable convolution, BSConv-U: one basis kernel per output channel, weighted.

    It is the MLG method with `Bi = 1` and no level 2.

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
        # A sum of n products of independent factors has n times the product of variances.
        present = [variances[name] for name, shape in shapes._asdict().items() if shape is not None]
        num_terms = (num_bases if shapes.coeff_out else 1) * base_in
        correction = he_variance / (num_terms * math.prod(present))
        variances = {n: v * correction ** (1.0 / len(present)) for n, v in variances.items()}
    return {name: math.sqrt(variance) for name, variance in variances.items()}
