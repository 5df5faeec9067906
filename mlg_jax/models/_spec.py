"""All arguments of `create_model` as one serialisable value."""

import dataclasses
import typing
from collections.abc import Mapping
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
from mlg_jax._dataclass_json import entries, to_plain
from mlg_jax.kernels import (
    KernelSpec,
    OrdinarySpec,
    by_path,
    pairs_from_json,
    patterns_from_json,
)
from mlg_jax.layers import BatchNorm, Conv, Dense, check_implementation
from mlg_jax.models._layers import Layers, Partial
from mlg_jax.models._parts import STEMS
from mlg_jax.models._registry import MODELS
from mlg_jax.quant import ActivationSpec, QuantSpec
from mlg_jax.remat import NO_REMAT, PRESETS, RematSpec, ResidualPolicy

_LATER = {"on_overflow": "warn", "policy": None}  # `RematSpec` fields that older files lack
_OLD_NAMES = {"execution": "implementation"}  # of arguments in files of version 0.1

Patterns = tuple[tuple[str, KernelSpec | None], ...]
Remat = RematSpec | ResidualPolicy | str | None
ImplementationChoice = str | Mapping[str, str] | tuple[tuple[str, str], ...]
Generation = KernelSpec | Mapping[str, KernelSpec | None] | Patterns | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All arguments of `create_model`, frozen and hashable; stored in every model as `spec`.

    Args:
        name, num_classes, stem, width, weight_bits, activation_bits: as in `create_model`.
        generation, implementation: likewise; a mapping is converted to a tuple of its items, whose
            order matters.
        remat: likewise; converted to a `RematSpec`.
        dtype: likewise; converted to its name.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    name: str
    num_classes: int
    stem: str = "cifar"
    width: float = 1.0
    generation: Generation = None
    weight_bits: int | None = None
    activation_bits: int | None = None
    implementation: ImplementationChoice = "auto"
    remat: Remat = None
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
        assert QuantSpec(self.weight_bits) and ActivationSpec(self.activation_bits)  # run checks
        self._set("generation", _generation(self.generation))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def ordinary(self) -> "ModelSpec":
        """The same architecture with ordinary kernels, and nothing quantised."""
        plain = dataclasses.replace(self, generation=None, weight_bits=None, activation_bits=None)
        return dataclasses.replace(plain, implementation="auto")

    def create(self) -> nn.Module:
        """Builds the model; only `create_model` checks that each pattern matches a layer."""
        dtype = None if self.dtype is None else jnp.dtype(self.dtype)
        param_dtype = jnp.float32 if dtype is None else jnp.promote_types(dtype, jnp.float32)
        weights = QuantSpec(self.weight_bits)
        shared = {
            "input_quant": ActivationSpec(self.activation_bits),
            "implementation": self.implementation,
            "kernel_init": None,
            "dtype": dtype,
            "param_dtype": param_dtype,
        }
        kernel = by_path(self.generation, self.weight_bits)
        layers = Layers(
            conv=Partial.of(Conv, kernel=kernel, **shared),
            dense=Partial.of(Dense, kernel=OrdinarySpec(weights, fan="in"), **shared),
            norm=Partial.of(BatchNorm, momentum=0.9, dtype=dtype, param_dtype=param_dtype),
            remat=_policy(self.remat),
        )
        return MODELS[self.name](
            num_classes=self.num_classes,
            stem=self.stem,
            width=self.width,
            layers=layers,
            spec=self,
        )

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values.

        Raises:
            ValueError: `remat` has a custom policy or a mesh, whose devices belong to this process.
        """
        assert isinstance(self.remat, RematSpec)
        if self.remat.policy is not None:
            raise ValueError("`remat` must be a preset to be serialised; got a custom policy.")
        if self.remat.mesh is not None:
            raise ValueError("`remat` must have no mesh to be serialised; got one.")
        tree = to_plain(dataclasses.replace(self, generation=None))
        return tree | {"generation": _generation_to_json(self.generation)}

    @classmethod
    def from_json(cls, tree: Any) -> "ModelSpec":
        """Inverse of `to_json`; no key may be missing or unknown.

        Raises:
            TypeError, ValueError: a value has the wrong structure, type or range.
        """
        values = entries(cls, _renamed(tree), "model")
        values["generation"] = _generation_from_json(values["generation"])
        if not isinstance(values["implementation"], str):
            values["implementation"] = pairs_from_json(
                values["implementation"], "model.implementation"
            )
        remat = entries(RematSpec, values["remat"], "model.remat", absent=_LATER)
        remat["capacities"] = pairs_from_json(remat["capacities"], "model.remat.capacities")
        for name in ("mesh", "policy"):
            if remat[name] is not None:
                raise ValueError(f"`model.remat.{name}` must be None; got {remat[name]!r}.")
        return cls(**values | {"remat": RematSpec(**remat)})


def _policy(remat: Remat) -> RematSpec:
    check_instance("remat", remat, (str, RematSpec, ResidualPolicy, type(None)))
    if isinstance(remat, ResidualPolicy):
        return RematSpec(policy=remat)
    if isinstance(remat, str):
        check_choice("remat", remat, PRESETS)
        return RematSpec(remat)
    return remat or NO_REMAT


def _generation(generation: Generation) -> KernelSpec | Patterns | None:
    generation = _items(generation)
    if not _is_pairs(generation):
        check_instance("generation", generation, (type(None), KernelSpec, Mapping))
        return typing.cast(KernelSpec | None, generation)
    pairs = typing.cast(Patterns, generation)
    for pattern, spec in pairs:
        check_instance("generation pattern", pattern, str)
        check_instance(f"generation[{pattern!r}]", spec, (type(None), KernelSpec))
    return pairs


def _items(value: Any) -> Any:
    """The items of a mapping as a tuple; any other value unchanged."""
    return tuple(value.items()) if isinstance(value, Mapping) else value


def _is_pairs(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(p, tuple) and len(p) == 2 for p in value)


def _renamed(tree: Any) -> Any:
    """Replaces the names of arguments in older files by the current ones."""
    if not isinstance(tree, Mapping) or "implementation" in tree:
        return tree
    return {_OLD_NAMES.get(name, name): value for name, value in tree.items()}


def _generation_to_json(generation: Any) -> Any:
    if isinstance(generation, tuple):
        return [[pattern, spec and spec.to_json()] for pattern, spec in generation]
    return generation and generation.to_json()


def _generation_from_json(tree: Any) -> KernelSpec | Patterns | None:
    where = "model.generation"
    if isinstance(tree, list):
        return patterns_from_json(tree, where)
    return None if tree is None else KernelSpec.from_json(tree, where)
