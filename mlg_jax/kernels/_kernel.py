"""The interface of kernel parametrisations: `KernelSpec` for users, `Kernel` for layers."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mlg_jax._checks import check_choice
from mlg_jax._convolution import convolve_as
from mlg_jax._dataclass_json import from_plain, to_plain
from mlg_jax._linear_vjp import rebuild_in_backward
from mlg_jax._platform import traced_platform
from mlg_jax._types import Array, Initializer, Key, LayerGeometry
from mlg_jax.kernels._least_squares import least_squares
from mlg_jax.kernels._torch import TorchModule
from mlg_jax.quant import QuantSpec, clip_to_grid, fake_quantize, unquantize

Factors = Mapping[str, Any]  # arrays by name, or their stand-ins under a transformation
GENERATE = "generate"  # the default implementation: builds the kernel, then applies it


@dataclasses.dataclass(frozen=True)
class Factor:
    """One stored parameter array of a layer."""

    name: str  # its key among the layer's parameters
    shape: tuple[int, ...]
    quant: QuantSpec = QuantSpec()
    # Not compared: equivalent initializers are often distinct functions.
    init: Initializer = dataclasses.field(default=jax.nn.initializers.zeros, compare=False)

    @property
    def num_params(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def num_bits(self) -> int:
        """Number of stored bits."""
        return self.num_params * self.quant.stored_bits


class KernelSpec(abc.ABC):
    """A parametrisation of kernels: frozen, hashable and independent of the layer.

    A subclass is a frozen dataclass of numbers, strings, tuples and `QuantSpec`s, declared with
    the name by which files refer to it: `class MySpec(KernelSpec, kind="my_kernel")`.
    """

    kind: ClassVar[str]
    implementations: ClassVar[tuple[str, ...]] = (GENERATE,)  # all that its kernels can have
    kinds: ClassVar[dict[str, type["KernelSpec"]]] = {}

    def __init_subclass__(cls, kind: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.kind = kind
        KernelSpec.kinds[kind] = cls

    @abc.abstractmethod
    def bind(self, layer: LayerGeometry) -> "Kernel | None":
        """The parametrised kernel of one layer; None if the spec does not apply to its shape."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, including the kind."""
        return {"kind": self.kind} | to_plain(self)

    @staticmethod
    def from_json(tree: Any, where: str = "kernel") -> "KernelSpec":
        """Inverts `to_json`; the kind is `generated` if missing, as in files of version 0.1.

        Raises:
            TypeError, ValueError: the kind is unknown, the keys are not those of its fields, or a
                value has the wrong type or is out of range.
        """
        values = dict(tree) if isinstance(tree, Mapping) else tree
        kind = values.pop("kind", "generated") if isinstance(values, dict) else "generated"
        check_choice(f"{where}.kind", kind, KernelSpec.kinds)
        return KernelSpec.kinds[kind].from_plain(values, where)

    @classmethod
    def from_plain(cls, tree: Any, where: str) -> "KernelSpec":
        """Builds a spec of this class from a mapping of its fields."""
        return from_plain(cls, tree, where)


@dataclasses.dataclass(frozen=True)
class Kernel(abc.ABC):
    """The parametrisation of one layer's kernel.

    `build` must be linear in each factor. Everything else has a default in terms of `factors` and
    `build`; subclasses override it where they can do better.

    Attributes:
        spec: the spec that it was bound from.
        layer: the layer that it belongs to.
    """

    spec: Any
    layer: LayerGeometry

    @property
    @abc.abstractmethod
    def factors(self) -> tuple[Factor, ...]:
        """The stored arrays."""

    @abc.abstractmethod
    def build(self, factors: Factors) -> Array:
        """The kernel in Flax's layout, `[height, width, in, out]` or `[in, out]`."""

    @property
    def implementations(self) -> tuple[str, ...]:
        """The different ways to compute `apply`; empty if there is nothing to choose."""
        return self.spec.implementations

    def choose_implementation(self, dtype: Any, *, is_training: bool) -> str:
        """The one of `implementations` that `auto` stands for."""
        return self.implementations[0]

    def canonical(self, implementation: str) -> str:
        """Maps any implementation name to one of `implementations`, by default to `generate`."""
        return implementation if implementation in self.implementations else GENERATE

    def apply(self, factors: Factors, x: Array, implementation: str | None) -> Array:
        """The layer's output without bias, in the dtype of x, the same for every implementation.

        This default rebuilds the kernel in both passes. Residuals: the factors and x.

        Args:
            factors: the quantised factors.
            x: `[N, H, W, C]`, or `[..., C]` for a dense layer.
            implementation: one of `implementations`, or None if that is empty.
        """

        def build(factors: Factors) -> Array:
            if traced_platform() != "cpu":  # narrow products are faster there, but not on CPUs
                factors = jax.tree.map(lambda factor: factor.astype(x.dtype), dict(factors))
            return self.build(factors).astype(x.dtype)

        def product(kernel: Array, x: Array) -> Array:
            return convolve_as(self.layer, x, kernel)

        return rebuild_in_backward(build, product)(factors, x)

    def penalty(self, factors: Factors) -> Array | None:
        """A scalar to add to the loss, from unquantised factors; None if there is no penalty."""
        return None

    def project(self, kernel: Array, *, clip: bool = False) -> dict[str, Array]:
        """Parameters whose unrounded factors approximate `kernel`, by least squares on `build`.

        Args:
            kernel: in Flax's layout, floating.
            clip: clips every factor to the range of the grid that rounds it with the least error.
                Without it, the grid extends to the largest entry.
        """
        values = least_squares(self.build, self.init(jax.random.key(0), kernel.dtype), kernel)
        return self.to_params(values, clip=clip)

    def scale_outputs(self, factors: Factors, gain: Any) -> dict[str, Any]:
        """Factors of the kernel whose output channels are multiplied by `gain`, `[out]`.

        Raises:
            ValueError: this parametrisation cannot represent such kernels.
        """
        raise ValueError(
            f"`fold` must be False for kernels of kind {self.spec.kind!r} "
            f"(layer {self.layer.name}): they cannot absorb the scale of a norm."
        )

    def from_torch(self, module: TorchModule) -> dict[str, np.ndarray]:
        """The parameters from a PyTorch module: by default, arrays of the same names and shapes."""
        return {f.name: module.take(f.name, f.shape) for f in self.factors}

    def init(self, key: Key, dtype: Any) -> dict[str, Array]:
        """Initial parameters."""
        keys = jax.random.split(key, len(self.factors))
        return {f.name: f.init(k, f.shape, dtype) for f, k in zip(self.factors, keys, strict=True)}

    def quantize(self, params: Factors, key: Key | None = None) -> dict[str, Array]:
        """Quantises every factor; `key` selects the entries that are rounded if `ratio < 1`."""
        keys = _keys(key, len(self.factors))
        return {
            factor.name: fake_quantize(params[factor.name], factor.quant, key=k)
            for factor, k in zip(self.factors, keys, strict=True)
        }

    def to_params(self, values: Factors, *, clip: bool = False) -> dict[str, Array]:
        """Parameters with these re-parametrised, unrounded values; `clip` as in `project`."""

        def param(factor: Factor) -> Array:
            value = values[factor.name]
            if clip:
                value = clip_to_grid(np.asarray(value), factor.quant)
            return unquantize(jnp.asarray(value), factor.quant)

        return {factor.name: param(factor) for factor in self.factors}

    @property
    def is_random(self) -> bool:
        """Whether training needs a key: some entries are rounded with a probability below 1."""
        quants = (factor.quant for factor in self.factors)
        return any(quant.bits is not None and quant.ratio < 1.0 for quant in quants)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LayerRecord(LayerGeometry):
    """A layer's description of itself, which accounting, export and projection read."""

    factors: tuple[Factor, ...] = ()  # all parameters of the layer, including the bias
    kernel: Kernel | None = None  # None for layers without one
    implementation: str | None = None  # of the kernel; None if there is nothing to choose
    follows: str | None = None  # of a norm: the sibling convolution whose output it normalises
    epsilon: float = 0.0  # of a norm

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
        """Number of stored bits."""
        return sum(factor.num_bits for factor in self.factors)

    @property
    def num_dense_params(self) -> int:
        """Number of entries of the same layer with an ordinary kernel."""
        if self.kernel is None:
            return self.num_params
        generated = sum(factor.num_params for factor in self.kernel.factors)
        return self.num_params - generated + self.kernel_shape.size


def implementation_names() -> tuple[str, ...]:
    """`auto`, and the implementations of all kinds of kernels."""
    names = {name: None for spec in KernelSpec.kinds.values() for name in spec.implementations}
    return ("auto", *names)


def _keys(key: Key | None, count: int) -> list[Key | None]:
    """An independent key for each factor."""
    return [None if key is None else jax.random.fold_in(key, i) for i in range(count)]
