"""How layers describe themselves: records, collected by an abstract call that computes nothing."""

import collections
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlg_jax._types import Array, LayerRecord
from mlg_jax.generation import orthogonality_penalty

COLLECTION = "layer_records"


def record_layer(module: nn.Module, record: LayerRecord) -> None:
    """Hands in a layer's record; heard only by a call with that collection mutable."""
    if not module.is_initializing():
        module.sow(COLLECTION, "record", record, init_fn=lambda: None, reduce_fn=lambda _, r: r)


def layer_records(
    model: nn.Module, input_shape: Sequence[int] | None = None, *, is_training: bool = False
) -> tuple[LayerRecord, ...]:
    """The records of a model's layers, sorted by path.

    Args:
        model: a Linen module called as `model(x, train=False)` whose layers are this package's.
        input_shape: `[N, H, W, C]`; None takes the model's own `input_shape`.
        is_training: as in a training step; decides, with the shape, the `implementation` of `auto`.

    Returns:
        One record a layer with parameters. Nothing is computed or compiled.
    """
    shape = model.input_shape if input_shape is None else input_shape
    return _layer_records(model, tuple(shape), is_training)


@functools.lru_cache(maxsize=64)
def _layer_records(
    model: nn.Module, input_shape: tuple[int, ...], is_training: bool
) -> tuple[LayerRecord, ...]:
    x = jax.ShapeDtypeStruct(input_shape, jnp.float32)

    def call(key: Array, x: Array) -> Any:
        variables = model.init(key, x)
        if not is_training:
            return model.apply(variables, x, mutable=[COLLECTION])[1]
        rngs = {"quantize": key, "dropout": key}
        mutable = [COLLECTION, "batch_stats"]
        return model.apply(variables, x, train=True, mutable=mutable, rngs=rngs)[1][COLLECTION]

    collected = jax.eval_shape(call, jax.eval_shape(lambda: jax.random.key(0)), x)
    leaves = jax.tree.leaves(collected, is_leaf=lambda r: isinstance(r, LayerRecord))
    return tuple(sorted(leaves, key=lambda r: r.path))


def count_implementations(records: Sequence[LayerRecord]) -> dict[str, int]:
    """Number of generated layers by implementation."""
    return dict(
        collections.Counter(r.implementation for r in records if r.implementation is not None)
    )


def layer_params(params: Any, record: LayerRecord) -> dict[str, Array]:
    """The arrays of one layer, by name, out of a model's nested parameters."""
    node = params
    for name in record.path:
        node = node[name]
    return {name: node[name] for name in record.factor_names}


def total_penalty(records: Sequence[LayerRecord], params: Any) -> Array:
    """The orthogonality penalty summed over all generated layers; a scalar, zero without any.

    Args:
        records: the model's, from `layer_records`.
        params: the model's unquantised parameters.
    """
    generated = [layer_params(params, r) for r in records if "basis" in r.factor_names]
    terms = [
        orthogonality_penalty(f["basis"], f.get("coeff_in"), f.get("coeff_out")) for f in generated
    ]
    return sum(terms, start=jnp.zeros(()))
