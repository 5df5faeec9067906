"""Records by which layers describe themselves, collected by an abstract call."""

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from mlg_jax._platform import traced_platform
from mlg_jax._types import Array
from mlg_jax.kernels import Factor, Kernel, LayerRecord
from mlg_jax.layers._call import forward, init, input_shape_of, random_streams
from mlg_jax.layers._collections import COLLECTION, FACTORS, FOLDED
from mlg_jax.quant import QuantSpec, fake_quantize_together


def layer_records(
    model: nn.Module, input_shape: Sequence[int] | None = None, *, is_training: bool = False
) -> tuple[LayerRecord, ...]:
    """The records of a model's layers, sorted by path.

    Args:
        model: a Linen module built of this package's layers, or one from `generated`. Parameters
            of other layers get records of kind `other`.
        input_shape: `[N, H, W, C]`; None takes the model's own `input_shape`.
        is_training: traces a training step; with the shape, decides which implementation `auto` is.

    Returns:
        One record per layer with parameters or statistics. Nothing is computed or compiled.
    """
    return _trace(model, input_shape_of(model, input_shape), is_training)[0]


def variable_shapes(model: nn.Module, input_shape: Sequence[int] | None = None) -> Any:
    """Shapes and dtypes of the model's variables; `input_shape` as in `layer_records`."""
    return _trace(model, input_shape_of(model, input_shape), False)[1]


Trace = tuple[tuple[LayerRecord, ...], Any]


def _trace(model: nn.Module, input_shape: tuple[int, ...], is_training: bool) -> Trace:
    try:
        return _cached_trace(model, input_shape, is_training, traced_platform())
    except TypeError as error:  # a model with fields that cannot be hashed
        if "unhashable" not in str(error):
            raise
        return _trace_uncached(model, input_shape, is_training)


def _trace_uncached(
    model: nn.Module, input_shape: tuple[int, ...], is_training: bool, platform: str = ""
) -> Trace:
    """Records and variables of an abstract call; `auto` depends on the platform."""
    x = jax.ShapeDtypeStruct(input_shape, jnp.float32)

    def call(key: Array, x: Array) -> Any:
        variables = init(model, key, x)
        apply = forward(model, train=is_training)
        mutable = [COLLECTION, *(set(variables) - {"params"} if is_training else ())]
        rngs = {"params": key, **random_streams(key)} if is_training else {}
        return variables, apply(variables, x, mutable=mutable, rngs=rngs)[1]

    variables, state = jax.eval_shape(call, jax.eval_shape(lambda: jax.random.key(0)), x)
    leaves = jax.tree.leaves(
        state.get(COLLECTION, {}), is_leaf=lambda leaf: isinstance(leaf, LayerRecord)
    )
    records = [leaf for leaf in leaves if isinstance(leaf, LayerRecord)]
    records += _others(records, variables["params"])
    return tuple(sorted(records, key=lambda record: record.path)), variables


_cached_trace = functools.lru_cache(maxsize=64)(_trace_uncached)


def _others(records: Sequence[LayerRecord], params: Any) -> list[LayerRecord]:
    """Records of the parameters that no layer has declared, one per module."""
    declared = {(*record.path, name) for record in records for name in record.factor_names}
    modules: dict[tuple[str, ...], list[Factor]] = collections.defaultdict(list)
    for path, leaf in traverse_util.flatten_dict(params).items():
        if path not in declared:
            modules[path[:-1]].append(Factor(path[-1], leaf.shape))
    return [LayerRecord(path, "other", factors=tuple(f)) for path, f in modules.items()]


def count_implementations(records: Sequence[LayerRecord]) -> dict[str, int]:
    """Number of generated layers by implementation."""
    return dict(
        collections.Counter(r.implementation for r in records if r.implementation is not None)
    )


def layer_params(params: Any, record: LayerRecord) -> dict[str, Array]:
    """The arrays of one layer, by name, from a model's nested parameters."""
    node = params
    for name in record.path if record.factors else ():  # a norm may have no parameters
        node = node[name]
    return {name: node[name] for name in record.factor_names}


def layer_factors(params: Any, record: LayerRecord) -> dict[str, Array]:
    """The arrays of one layer's kernel, by name, without the bias."""
    assert record.kernel is not None
    arrays = layer_params(params, record)
    return {factor.name: arrays[factor.name] for factor in record.kernel.factors}


def total_penalty(records: Sequence[LayerRecord], params: Any) -> Array:
    """The kernels' penalties (orthogonality, for generated ones), summed over all layers; a scalar.

    Args:
        records: the model's, from `layer_records`.
        params: the model's unquantised parameters.
    """
    with_kernel = ((r.kernel, layer_factors(params, r)) for r in records if r.kernel is not None)
    terms = (kernel.penalty(factors) for kernel, factors in with_kernel)
    return sum((term for term in terms if term is not None), start=jnp.zeros(()))


def quantized_variables(
    records: Sequence[LayerRecord], variables: Mapping[str, Any], key: Array | None = None
) -> dict[str, Any]:
    """Adds the collection `factors`, in which the kernels' factors are quantised already.

    Layers use that collection in place of their parameters. All factors with the same quantiser are
    quantised together (`fake_quantize_together`), which saves a GPU most of the launches that it
    takes layer by layer. Differentiable with respect to the parameters.

    Args:
        records: the model's, from `layer_records`.
        variables: the model's, with `params`.
        key: for partial quantisation in training; None rounds all entries.

    Returns:
        The variables with the additional collection; kernels without a quantiser are not in it.
    """
    params = traverse_util.flatten_dict(variables["params"])
    groups: dict[QuantSpec, list[tuple[str, ...]]] = collections.defaultdict(list)
    factors: dict[tuple[str, ...], Any] = {}
    for record in records:
        kernel = record.kernel
        if kernel is None or all(factor.quant.is_identity for factor in kernel.factors):
            continue
        if type(kernel).quantize is not Kernel.quantize:  # not factor by factor
            own = kernel.quantize(layer_factors(variables["params"], record), key)
            factors |= {(*record.path, name): value for name, value in own.items()}
            continue
        for factor in kernel.factors:
            groups[factor.quant].append((*record.path, factor.name))
    for index, (spec, paths) in enumerate(groups.items()):
        own_key = None if key is None else jax.random.fold_in(key, index)
        values = fake_quantize_together([params[path] for path in paths], spec, key=own_key)
        factors |= dict(zip(paths, values, strict=True))
    return {**variables, FACTORS: traverse_util.unflatten_dict(factors)}


def decoded_variables(
    records: Sequence[LayerRecord], variables: Mapping[str, Any]
) -> dict[str, Any]:
    """Moves factors that are already on their grids to the collection `factors`.

    Layers use that collection unchanged. Rounding the factors again would change them, because the
    grid of a tanh scheme depends on its input. The collection also takes the bias of a layer that
    declares none, and a mark for every norm without statistics: `fold_norms` in the engine leaves
    such variables behind.
    """
    params = traverse_util.flatten_dict(variables["params"])
    stats = traverse_util.flatten_dict(variables.get("batch_stats", {}))
    factors: dict[tuple[str, ...], Any] = {}
    for record in records:
        if record.kernel is None:
            if record.kind == "norm" and (*record.path, "mean") not in stats:
                factors[(*record.path, FOLDED)] = True
            continue
        names = {factor.name for factor in record.kernel.factors}
        names |= {"bias"} - set(record.factor_names)
        for path in ((*record.path, name) for name in names):
            if path in params:
                factors[path] = params.pop(path)
    nested = {"params": params, FACTORS: factors}
    return {**variables, **{n: traverse_util.unflatten_dict(flat) for n, flat in nested.items()}}
