"""What a model is: all arguments of `create_model`, as a value that can be written down."""

import dataclasses
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mlg_jax._checks import (
    check_choice,
    check_float_dtype,
    check_instance,
    check_integer,
    check_real,
)
from mlg_jax.generation import GenerationSpec
from mlg_jax.layers import (
    BatchNorm,
    Conv,
    Dense,
    DenseKernel,
    GeneratedKernel,
    KernelChoice,
    KernelsByPath,
    check_implementation,
)
from mlg_jax.models._blocks import LayerFactory
from mlg_jax.models._registry import MODELS
from mlg_jax.models.resnet import STEMS
from mlg_jax.quant import ActivationSpec, QuantSpec
from mlg_jax.remat import NO_REMAT, PRESETS, RematSpec

MAX_PAIRS = 1024  # in a file; more than a network has layers
MAX_PATTERN = 256  # characters
_OLD_NAMES = {"execution": "implementation"}  # of arguments, in files of version 0.1

Patterns = tuple[tuple[str, GenerationSpec | None], ...]
ImplementationChoice = str | Mapping[str, str] | tuple[tuple[str, str], ...]
Generation = GenerationSpec | Mapping[str, GenerationSpec | None] | Patterns | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All arguments of `create_model`, frozen and hashable; every model it makes carries its own.

    Args:
        name, num_classes, stem, width, weight_bits, activation_bits: as there.
        generation, implementation: as there; a mapping becomes a tuple of its items, whose order
            counts.
        remat: as there; a name or None becomes a `RematSpec`.
        dtype: as there; becomes its name.

    Raises:
        TypeError, ValueError: an argument of another type or out of range.
    """

    name: str
    num_classes: int
    stem: str = "cifar"
    width: float = 1.0
    generation: Generation = None
    weight_bits: int | None = None
    activation_bits: int | None = None
    implementation: ImplementationChoice = "auto"
    remat: RematSpec | str | None = None
    dtype: Any = None

    def __post_init__(self) -> None:
        check_choice("name", self.name, MODELS)
        check_integer("num_classes", self.num_classes, 1)
        check_choice("stem", self.stem, STEMS)
        check_real("width", self.width, 0.0, exclusive_minimum=True)
        self._set("implementation", _items(self.implementation))
        check_implementation(self.implementation)
        self._set("remat", _policy(self.remat))
        if self.dtype is not None:
            check_float_dtype("dtype", self.dtype)
            self._set("dtype", jnp.dtype(self.dtype).name)
        assert QuantSpec(self.weight_bits) and ActivationSpec(self.activation_bits)  # their checks
        self._set("generation", _generation(self.generation))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def create(self) -> nn.Module:
        """The model; patterns of `generation` that match no layer are `create_model`'s to find."""
        dtype = None if self.dtype is None else jnp.dtype(self.dtype)
        param_dtype = jnp.float32 if dtype is None else jnp.promote_types(dtype, jnp.float32)
        weights = QuantSpec(self.weight_bits)
        shared = {
            "input_quant": ActivationSpec(self.activation_bits),
            "implementation": self.implementation,
            "dtype": dtype,
            "param_dtype": param_dtype,
        }
        kernel = _kernels(self.generation, DenseKernel(weights))
        return MODELS[self.name](
            num_classes=self.num_classes,
            stem=self.stem,
            width=self.width,
            conv=LayerFactory.of(Conv, kernel=kernel, **shared),
            dense=LayerFactory.of(Dense, kernel=DenseKernel(weights, fan="in"), **shared),
            norm=LayerFactory.of(BatchNorm, dtype=dtype, param_dtype=param_dtype),
            remat=self.remat,
            spec=self,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, nested.

        Raises:
            ValueError: a policy with a mesh, whose devices are this process's own.
        """
        assert isinstance(self.remat, RematSpec)
        if self.remat.mesh is not None:
            raise ValueError("`remat` must have no mesh to be written down; got one.")
        return _to_json(self)

    @classmethod
    def from_json(cls, tree: Any) -> "ModelSpec":
        """What `to_json` gave, checked: no key may be missing and none unknown.

        Raises:
            TypeError, ValueError: another structure, type or range.
        """
        values = _entries(cls, _renamed(tree), "model")
        values["generation"] = _generation_from_json(values["generation"])
        if not isinstance(values["implementation"], str):
            values["implementation"] = _pairs(values["implementation"], "model.implementation")
        remat = _entries(RematSpec, values["remat"], "model.remat", absent={"on_overflow": "warn"})
        remat["capacities"] = _pairs(remat["capacities"], "model.remat.capacities")
        if remat["mesh"] is not None:
            raise ValueError(f"`model.remat.mesh` must be None; got {remat['mesh']!r}.")
        return cls(**values | {"remat": RematSpec(**remat)})


def _policy(remat: RematSpec | str | None) -> RematSpec:
    check_instance("remat", remat, (str, RematSpec, type(None)))
    if isinstance(remat, str):
        check_choice("remat", remat, PRESETS)
        return RematSpec(remat)
    return remat or NO_REMAT


def _generation(generation: Generation) -> GenerationSpec | Patterns | None:
    generation = _items(generation)
    if not _is_pairs(generation, tuple):
        check_instance("generation", generation, (type(None), GenerationSpec, Mapping))
        return typing.cast(GenerationSpec | None, generation)
    pairs = typing.cast(Patterns, generation)
    for pattern, spec in pairs:
        check_instance("generation pattern", pattern, str)
        check_instance(f"generation[{pattern!r}]", spec, (type(None), GenerationSpec))
    return pairs


def _items(value: Any) -> Any:
    """A mapping as the tuple of its items; anything else as it is."""
    return tuple(value.items()) if isinstance(value, Mapping) else value


def _is_pairs(value: Any, kind: type[tuple] | type[list]) -> bool:
    return isinstance(value, kind) and all(isinstance(p, kind) and len(p) == 2 for p in value)


def _kernels(generation: Any, fallback: DenseKernel) -> KernelChoice:
    if generation is None:
        return fallback
    if isinstance(generation, GenerationSpec):
        return GeneratedKernel(generation, fallback)
    choices = tuple((pattern, _kernels(spec, fallback)) for pattern, spec in generation)
    return KernelsByPath(choices, fallback)


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: _to_json(getattr(value, field.name)) for field in fields}
    if isinstance(value, tuple):
        return [_to_json(entry) for entry in value]
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _entries(
    spec: type, tree: Any, where: str, *, absent: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The mapping `tree`, whose keys must be the fields of the dataclass `spec`.

    `absent` has the values of fields that older files do not know.
    """
    names = [field.name for field in dataclasses.fields(spec)]
    if isinstance(tree, Mapping):
        tree = {**(absent or {}), **tree}
    if not isinstance(tree, Mapping) or sorted(map(str, tree)) != sorted(names):
        found = sorted(map(str, tree)) if isinstance(tree, Mapping) else tree
        raise ValueError(f"`{where}` must have the keys {sorted(names)}; got {found!r}.")
    return dict(tree)


def _renamed(tree: Any) -> Any:
    """The same tree with the names of this version in place of those of older files."""
    if not isinstance(tree, Mapping) or "implementation" in tree:
        return tree
    return {_OLD_NAMES.get(name, name): value for name, value in tree.items()}


def _pairs(tree: Any, where: str) -> tuple[tuple[Any, Any], ...]:
    """A list of lists of two, for layers or patterns of their names, which are tried in turn."""
    if not _is_pairs(tree, list):
        raise ValueError(f"`{where}` must be a list of pairs; got {tree!r}.")
    longest = max((len(str(first)) for first, _ in tree), default=0)
    if len(tree) > MAX_PAIRS or longest > MAX_PATTERN:
        raise ValueError(
            f"`{where}` must have at most {MAX_PAIRS} patterns of {MAX_PATTERN} characters; got "
            f"{len(tree)}, the longest of {longest}."
        )
    return tuple((first, second) for first, second in tree)


def _generation_from_json(tree: Any) -> GenerationSpec | Patterns | None:
    if tree is None:
        return None
    if isinstance(tree, list):
        pairs = _pairs(tree, "model.generation")
        return tuple((p, None if spec is None else _spec_from_json(spec)) for p, spec in pairs)
    return _spec_from_json(tree)


def _spec_from_json(tree: Any) -> GenerationSpec:
    values = _entries(GenerationSpec, tree, "model.generation")
    for name in ("basis", "coeff_in", "coeff_out"):
        where = f"model.generation.{name}"
        values[name] = QuantSpec(**_entries(QuantSpec, values[name], where))
    return GenerationSpec(**values)
