"""Where a projection starts: the teacher's kernels and the factors in closed form."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlg_jax._checks import check_instance
from mlg_jax._types import Array, Key
from mlg_jax.compress._sensitivity import replaced
from mlg_jax.kernels import LayerRecord, OrdinaryKernel, OrdinarySpec
from mlg_jax.layers import KernelSwap, layer_factors, layer_records
from mlg_jax.models import ModelSpec


def ordinary_model(model: nn.Module) -> nn.Module:
    """The same architecture with ordinary kernels, and nothing quantised.

    Raises:
        TypeError: `model` is from neither `create_model` nor `generated`.
    """
    if isinstance(model, KernelSwap):
        return model.clone(kernel=OrdinarySpec(), implementation="auto")
    spec = getattr(model, "spec", None)
    check_instance("model.spec", spec, ModelSpec)
    assert isinstance(spec, ModelSpec)
    return spec.ordinary.create()


def clipped_factors(
    model: nn.Module, teacher_variables: Mapping[str, Any], input_shape: tuple[int, ...]
) -> dict[str, dict[str, Array]]:
    """The closed-form factors of every layer whose kernel is not ordinary, by layer.

    Each is clipped to the range in which its grid rounds it best.
    """
    return {
        r.name: r.kernel.project(trained_kernel(teacher_variables["params"], r), clip=True)
        for r in layer_records(model, input_shape)
        if r.kernel is not None and not isinstance(r.kernel, OrdinaryKernel)
    }


def initial_factors(
    like: Mapping[str, Mapping[str, Array]], records: Sequence[LayerRecord], key: Key
) -> dict[str, dict[str, Array]]:
    """Random factors of the layers in `like`."""
    return {
        r.name: r.kernel.init(jax.random.fold_in(key, i), jnp.float32)
        for i, r in enumerate(records)
        if r.name in like and r.kernel is not None
    }


def with_ordinary_kernels(
    model: nn.Module, variables: Mapping[str, Any], input_shape: tuple[int, ...]
) -> dict[str, Any]:
    """Variables whose ordinary kernels, once quantised, are nearest to the given ones.

    The quantiser applies tanh to a parameter and rescales it, which this inverts.
    """
    params = variables["params"]
    for record in layer_records(model, input_shape):
        if isinstance(record.kernel, OrdinaryKernel):
            values = record.kernel.to_params(layer_factors(params, record))
            for name, value in values.items():
                params = replaced(params, (*record.path, name), value)
    return {**variables, "params": params}


def check_shape(
    collection: str, path: Sequence[str], got: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    if got != expected:
        raise ValueError(
            f"`teacher_variables` must hold {collection} {'/'.join(path)} with shape {expected}; "
            f"got {got}."
        )


def trained_kernel(teacher_params: Any, record: LayerRecord) -> Array:
    """The teacher's kernel of one layer, in Flax's layout.

    Raises:
        ValueError: it is missing or has another shape.
    """
    node = teacher_params
    for name in (*record.path, "kernel"):
        if name not in node:
            raise ValueError(
                f"`teacher_variables` must hold params {record.name}/kernel; it is missing."
            )
        node = node[name]
    check_shape("params", (*record.path, "kernel"), node.shape, record.kernel_shape.layout)
    return jnp.asarray(node)
