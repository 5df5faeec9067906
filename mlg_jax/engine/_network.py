"""The network of a packed file: made from the file's spec, or the caller's own module."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from mlg_jax._checks import check_instance, check_integer
from mlg_jax._dataclass_json import entries, to_plain
from mlg_jax.export import PackedModel
from mlg_jax.kernels import KernelSpec
from mlg_jax.layers import (
    KernelSwap,
    forward,
    generated,
    input_shape_of,
    variable_shapes,
)
from mlg_jax.models import ImplementationChoice, ModelSpec, with_layers
from mlg_jax.remat import NO_REMAT

MAX_NAME = 256  # characters of a module's name in a file


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModuleSpec:
    """A model that `create_model` did not make, as a packed file describes it.

    Args:
        module: the full name of its class.
        kernel: the parametrisation of its kernels, of a model from `generated`; None: its own.
        image_shape: `(height, width, channels)` of what it is called with.
        num_classes: number of logits.

    Raises:
        TypeError, ValueError: an argument of another type or out of range.
    """

    module: str
    kernel: KernelSpec | None
    image_shape: tuple[int, int, int]
    num_classes: int

    def __post_init__(self) -> None:
        check_instance("module", self.module, str)
        if len(self.module) > MAX_NAME:
            raise ValueError(f"`module` must have at most {MAX_NAME} characters.")
        check_instance("image_shape", self.image_shape, tuple)
        if len(self.image_shape) != 3:
            raise ValueError(f"`image_shape` must be (H, W, C); got {self.image_shape!r}.")
        for size in self.image_shape:
            check_integer("image_shape", size, 1)
        check_integer("num_classes", self.num_classes, 1)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        tree = to_plain(dataclasses.replace(self, kernel=None))
        return tree | {"kernel": self.kernel and self.kernel.to_json()}

    @classmethod
    def from_json(cls, tree: Any) -> "ModuleSpec":
        """What `to_json` returned.

        Raises:
            TypeError, ValueError: another structure, type or range.
        """
        values = entries(cls, tree, "model")
        if values["kernel"] is not None:
            values["kernel"] = KernelSpec.from_json(values["kernel"], "model.kernel")
        if isinstance(values["image_shape"], list):
            values["image_shape"] = tuple(values["image_shape"])
        return cls(**values)


NetworkSpec = ModelSpec | ModuleSpec


def spec_from_json(tree: Any) -> NetworkSpec:
    """What `to_json` of either kind returned.

    Raises:
        TypeError, ValueError: another structure, type or range.
    """
    if isinstance(tree, Mapping) and "module" in tree:
        return ModuleSpec.from_json(tree)
    return ModelSpec.from_json(tree)


def describe(
    model: nn.Module, variables: Any, image_shape: Sequence[int] | None = None
) -> NetworkSpec:
    """The spec under which a model is saved, without what matters in training only.

    Args:
        model: any Linen module.
        variables: its variables.
        image_shape: `(height, width, channels)`; None takes the model's own.

    Raises:
        TypeError: not a Linen module.
        ValueError: no image shape, or outputs that are not logits `[N, num_classes]`.
    """
    check_instance("model", model, nn.Module)
    spec = getattr(model, "spec", None)
    if isinstance(spec, ModelSpec) and _without_remat(model) == _spec_without_remat(spec).create():
        return _spec_without_remat(spec)
    shape = input_shape_of(model, None if image_shape is None else (1, *image_shape))
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    logits = jax.eval_shape(forward(model, train=False), variables, x)
    if getattr(logits, "ndim", None) != 2:
        raise ValueError(
            "`model` must return logits, one array [N, num_classes]; got "
            f"{jax.tree.map(jnp.shape, logits)}."
        )
    return ModuleSpec(
        module=_full_name(model),
        kernel=model.kernel if isinstance(model, KernelSwap) else None,
        image_shape=(shape[1], shape[2], shape[3]),
        num_classes=logits.shape[-1],
    )


def network_of(
    spec: NetworkSpec, model: nn.Module | None, implementation: ImplementationChoice
) -> nn.Module:
    """The network of a file.

    Args:
        spec: what the file says.
        model: the caller's module; None: `spec` must be that of a model of `create_model`.
        implementation: as `create_model` takes it; `auto` leaves a caller's module as it is.

    Raises:
        ValueError: the file needs another module, or one with another choice of implementations.
    """
    if isinstance(spec, ModelSpec):
        if model is not None:
            raise ValueError(
                f"`model` must be None, as the file holds a {spec.name} of `create_model`; got a "
                f"{type(model).__name__}."
            )
        return dataclasses.replace(spec, implementation=implementation).create()
    if model is None:
        raise ValueError(
            f"`model` must be given, as the file needs the module {spec.module}; got None."
        )
    check_instance("model", model, nn.Module)
    if _class_name(_full_name(model)) != _class_name(spec.module):
        raise ValueError(
            f"`model` must be the module that the file needs, {spec.module}; got "
            f"{_full_name(model)}."
        )
    if spec.kernel is not None:
        network: Any = generated(model, spec.kernel, implementation=_as_mapping(implementation))
        return network
    if implementation != "auto":
        raise ValueError(
            "`implementation` must be 'auto' for a module that chooses its own; got "
            f"{implementation!r}."
        )
    return model


def _as_mapping(implementation: ImplementationChoice) -> str | Mapping[str, str]:
    return dict(implementation) if isinstance(implementation, tuple) else implementation


def _full_name(model: nn.Module) -> str:
    if isinstance(model, KernelSwap):
        return model.full_name
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _class_name(full_name: str) -> str:
    """Without the module: a script is `__main__` only where it is run."""
    return full_name.rpartition(".")[2]


def _spec_without_remat(spec: ModelSpec) -> ModelSpec:
    return dataclasses.replace(spec, remat=None)


def _without_remat(model: Any) -> nn.Module:
    plain = with_layers(model, remat=NO_REMAT)
    return plain.clone(spec=_spec_without_remat(model.spec))


def check_tensors(network: nn.Module, image_shape: Sequence[int], packed: PackedModel) -> None:
    """Raises ValueError unless the file's arrays have the model's names, shapes and types."""
    wanted = traverse_util.flatten_dict(variable_shapes(network, (1, *image_shape)))
    ours = {path: _type_of(leaf.dtype == bool, leaf.shape) for path, leaf in wanted.items()}
    theirs = {t.path: _type_of(t.scheme == "bool", t.shape) for t in packed.tensors}
    if wrong := sorted(p for p in ours.keys() | theirs.keys() if ours.get(p) != theirs.get(p)):
        path = wrong[0]
        raise ValueError(
            f"{'/'.join(path)} must be {ours.get(path, 'absent')}; got "
            f"{theirs.get(path, 'nothing')}"
        )


def _type_of(is_bool: bool, shape: Sequence[int]) -> str:
    return f"{'bool' if is_bool else 'float'} {tuple(shape)}"
