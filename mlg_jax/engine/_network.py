"""The network of a packed file: created from the file's spec, or the caller's own module."""

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

MAX_NAME = 256  # maximum number of characters of a module's name


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModuleSpec:
    """Description, in a packed file, of a model that was not made by `create_model`.

    Args:
        module: the full name of its class.
        kernel: the parametrisation of its kernels if it was made by `generated`; otherwise None.
        image_shape: `(height, width, channels)` of its input images.
        num_classes: number of logits.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
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
        """The inverse of `to_json`.

        Raises:
            TypeError, ValueError: `tree` has another structure, or a value is invalid.
        """
        values = entries(cls, tree, "model")
        if values["kernel"] is not None:
            values["kernel"] = KernelSpec.from_json(values["kernel"], "model.kernel")
        if isinstance(values["image_shape"], list):
            values["image_shape"] = tuple(values["image_shape"])
        return cls(**values)


NetworkSpec = ModelSpec | ModuleSpec


def spec_from_json(tree: Any) -> NetworkSpec:
    """The inverse of `ModelSpec.to_json` and `ModuleSpec.to_json`.

    Raises:
        TypeError, ValueError: `tree` has another structure, or a value is invalid.
    """
    if isinstance(tree, Mapping) and "module" in tree:
        return ModuleSpec.from_json(tree)
    return ModelSpec.from_json(tree)


def describe(
    model: nn.Module, variables: Any, image_shape: Sequence[int] | None = None
) -> NetworkSpec:
    """The spec that is stored with a model, without its rematerialisation policy.

    Args:
        model: any Linen module.
        variables: its variables.
        image_shape: `(height, width, channels)`; None takes the model's own.

    Raises:
        TypeError: `model` is not a Linen module.
        ValueError: the image shape is unknown, or the outputs are not logits `[N, num_classes]`.
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
        spec: the spec stored in the file.
        model: the caller's module, required if and only if `spec` is a `ModuleSpec`.
        implementation: see `create_model`; must be `auto` for a module with its own kernels.

    Raises:
        TypeError: `model` is not a Linen module.
        ValueError: `model` is not the module of the file, or the implementation cannot be chosen.
    """
    if isinstance(spec, ModelSpec):
        if model is not None:
            raise ValueError(
                f"`model` must be None, as the file holds a {spec.name} made by `create_model`; "
                f"got a {type(model).__name__}."
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
    """The name without its Python module: that of a script is `__main__` only when it is run."""
    return full_name.rpartition(".")[2]


def _spec_without_remat(spec: ModelSpec) -> ModelSpec:
    return dataclasses.replace(spec, remat=None)


def _without_remat(model: Any) -> nn.Module:
    plain = with_layers(model, remat=NO_REMAT)
    return plain.clone(spec=_spec_without_remat(model.spec))


def check_tensors(network: nn.Module, image_shape: Sequence[int], packed: PackedModel) -> None:
    """Raises ValueError unless the file's arrays have the network's names, shapes and types."""
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
