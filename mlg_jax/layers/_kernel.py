"""Kernel providers: what the kernel of a layer is made of, injected as a frozen value."""

import abc
import dataclasses
import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from mlg_jax._checks import check_choice, check_instance
from mlg_jax._linear_vjp import weight_grad_first
from mlg_jax._types import Array, FactorRecord, Initializer, KernelShape, Key, LayerRecord
from mlg_jax.generation import (
    FactorShapes,
    GenerationSpec,
    apply_generated,
    choose_implementation,
    convolve_as,
    factor_records,
    generate_kernel,
    to_layout,
)
from mlg_jax.quant import QuantSpec, fake_quantize

Arrays = Mapping[str, Array]


class KernelChoice(abc.ABC):
    """Decides which provider serves a layer; frozen and hashable."""

    @abc.abstractmethod
    def resolve(self, path: str, shape: KernelShape) -> "KernelProvider":
        """The provider for the layer at `path` with a kernel of this shape."""


class KernelProvider(KernelChoice):
    """Declares a layer's parameters and turns them into its kernel."""

    @abc.abstractmethod
    def records(self, shape: KernelShape) -> tuple[FactorRecord, ...]:
        """The parameters: names, shapes, stored bits."""

    @abc.abstractmethod
    def initializer(self, name: str, shape: KernelShape) -> Initializer:
        """Initial values of the parameter `name`."""

    @abc.abstractmethod
    def quantize(self, params: Arrays, key: Key | None) -> Arrays:
        """The parameters on their grids; `key` decides what is left out where `ratio < 1`."""

    @abc.abstractmethod
    def build(self, factors: Arrays, shape: KernelShape) -> Array:
        """The kernel in Flax's layout, from quantised parameters."""

    @abc.abstractmethod
    def implementation(
        self, wanted: str, record: LayerRecord, dtype: Any, *, is_training: bool
    ) -> str | None:
        """How the kernel will be applied, `auto` resolved; None: there is but one way."""

    @abc.abstractmethod
    def apply(self, factors: Arrays, record: LayerRecord, x: Array) -> Array:
        """The layer's product, keeping for the backward pass no more than it must."""

    @property
    @abc.abstractmethod
    def quant_specs(self) -> tuple[QuantSpec, ...]:
        """Every quantiser in use."""

    @property
    def is_random(self) -> bool:
        """Whether training needs a key: some entries are rounded by chance."""
        return any(spec.bits is not None and spec.ratio < 1.0 for spec in self.quant_specs)


@dataclasses.dataclass(frozen=True)
class DenseKernel(KernelProvider):
    """An ordinary kernel, stored whole, quantised as a whole if `quant` has bits."""

    quant: QuantSpec = QuantSpec()
    fan: str = "out"  # He's fan: "out" for convolutions, "in" for the classifier

    def __post_init__(self) -> None:
        check_instance("quant", self.quant, QuantSpec)
        check_choice("fan", self.fan, ("in", "out"))

    def resolve(self, path: str, shape: KernelShape) -> KernelProvider:
        """Itself."""
        return self

    def records(self, shape: KernelShape) -> tuple[FactorRecord, ...]:
        """One kernel."""
        return (FactorRecord("kernel", shape.layout, self.quant.bits, self.quant.scheme),)

    def initializer(self, name: str, shape: KernelShape) -> Initializer:
        """Normal, deviation `sqrt(2 / fan)`."""
        channels = shape.out_channels if self.fan == "out" else shape.in_channels
        return nn.initializers.normal(math.sqrt(2.0 / (channels * shape.taps)))

    def quantize(self, params: Arrays, key: Key | None) -> Arrays:
        """The kernel on its grid."""
        return {"kernel": fake_quantize(params["kernel"], self.quant, key=key)}

    def build(self, factors: Arrays, shape: KernelShape) -> Array:
        """The kernel itself."""
        return factors["kernel"]

    def implementation(
        self, wanted: str, record: LayerRecord, dtype: Any, *, is_training: bool
    ) -> str | None:
        """None."""
        return None

    def apply(self, factors: Arrays, record: LayerRecord, x: Array) -> Array:
        """The plain product: the kernel is a parameter and there all the time."""

        def run(kernel: Array, x: Array) -> Array:
            return convolve_as(record, x, kernel.astype(x.dtype))

        return weight_grad_first(run)(factors["kernel"], x)

    @property
    def quant_specs(self) -> tuple[QuantSpec, ...]:
        """The kernel's."""
        return (self.quant,)


@dataclasses.dataclass(frozen=True)
class GeneratedKernel(KernelProvider):
    """A kernel generated from factors; only `basis`, `coeff_in` and `coeff_out` are parameters."""

    spec: GenerationSpec
    fallback: DenseKernel = DenseKernel()  # serves shapes to which neither level applies

    def __post_init__(self) -> None:
        check_instance("spec", self.spec, GenerationSpec)
        check_instance("fallback", self.fallback, DenseKernel)

    def shapes(self, shape: KernelShape) -> FactorShapes:
        """The factors' shapes, for a shape to which a level applies."""
        shapes = self.spec.resolve(shape)
        assert shapes is not None, "resolve() has sent such layers to the fallback"
        return shapes

    def resolve(self, path: str, shape: KernelShape) -> KernelProvider:
        """Itself, or the fallback where neither level applies."""
        return self.fallback if self.spec.resolve(shape) is None else self

    def records(self, shape: KernelShape) -> tuple[FactorRecord, ...]:
        """The factors that exist."""
        return factor_records(self.spec, self.shapes(shape))

    def initializer(self, name: str, shape: KernelShape) -> Initializer:
        """Normal; deviation by the spec's `init`."""
        shapes = self.shapes(shape)
        num_bases, base_in, _ = shapes.basis
        if shapes.coeff_in is None:
            base_in = 1  # the basis is multiplied by V alone
        he_variance = 2.0 / (shape.out_channels * shape.taps)
        variances = {
            "basis": he_variance,
            "coeff_in": 2.0 / (num_bases * base_in),
            "coeff_out": 2.0 / shape.out_channels,
        }
        variance = variances[name]
        if self.spec.init == "variance":
            # A sum of n products of independent factors has n times the product of variances.
            present = [variances[record.name] for record in self.records(shape)]
            num_terms = (num_bases if shapes.coeff_out else 1) * base_in
            correction = he_variance / (num_terms * math.prod(present))
            variance *= correction ** (1.0 / len(present))
        return nn.initializers.normal(math.sqrt(variance))

    def quantize(self, params: Arrays, key: Key | None) -> Arrays:
        """Each factor on its own grid."""
        specs = {name: getattr(self.spec, name) for name in params}
        return {
            name: fake_quantize(value, specs[name], key=_key_for(key, name))
            for name, value in params.items()
        }

    def build(self, factors: Arrays, shape: KernelShape) -> Array:
        """`W = V (U B)`."""
        kernel = generate_kernel(
            factors["basis"], factors.get("coeff_in"), factors.get("coeff_out")
        )
        return to_layout(kernel, shape)

    def implementation(
        self, wanted: str, record: LayerRecord, dtype: Any, *, is_training: bool
    ) -> str | None:
        """As wanted; `auto` by shapes, dtype, backend, and whether gradients will be taken."""
        if wanted != "auto":
            return wanted
        assert record.kernel is not None
        shapes = self.shapes(record.kernel)
        return choose_implementation(shapes, record, dtype, is_training=is_training)

    def apply(self, factors: Arrays, record: LayerRecord, x: Array) -> Array:
        """By the record's implementation; keeps the factors."""
        assert record.implementation is not None
        return apply_generated(record.implementation, factors, x, record)

    @property
    def quant_specs(self) -> tuple[QuantSpec, ...]:
        """The three factors'."""
        return (self.spec.basis, self.spec.coeff_in, self.spec.coeff_out)


@dataclasses.dataclass(frozen=True)
class KernelsByPath(KernelChoice):
    """Chooses by the layer's path: the first matching pattern (`fnmatch`) decides."""

    choices: tuple[tuple[str, KernelChoice], ...]
    default: KernelChoice = DenseKernel()

    def resolve(self, path: str, shape: KernelShape) -> KernelProvider:
        """What the first matching choice, else the default, resolves to."""
        matches = (c for pattern, c in self.choices if fnmatch.fnmatchcase(path, pattern))
        return next(matches, self.default).resolve(path, shape)


def as_choice(kernel: KernelChoice | GenerationSpec | QuantSpec) -> KernelChoice:
    """What a layer's `kernel` stands for: a spec is the kernel that it describes.

    Raises:
        TypeError: something else.
    """
    check_instance("kernel", kernel, (KernelChoice, GenerationSpec, QuantSpec))
    if isinstance(kernel, GenerationSpec):
        return GeneratedKernel(kernel)
    return DenseKernel(kernel) if isinstance(kernel, QuantSpec) else kernel


def _key_for(key: Key | None, name: str) -> Key | None:
    """An independent key for each factor."""
    return None if key is None else jax.random.fold_in(key, FactorShapes._fields.index(name))
