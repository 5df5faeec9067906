"""Projection that sees the data: every layer's output on real images is matched in turn."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

from mlg_jax._convolution import from_layout, patches_of
from mlg_jax._types import Array, LayerGeometry
from mlg_jax.generation import ProjectionSpec
from mlg_jax.kernels import Kernel, LayerRecord, OrdinaryKernel
from mlg_jax.layers import (
    captured_calls,
    init,
    layer_factors,
    layer_params,
    layer_records,
    quantized_variables,
)

BATCH_SIZE = 100  # at most; images whose statistics norms use while inputs are collected
_TINY = 1e-12


class Moments(NamedTuple):
    """Second moments of a layer's patches `x` [P] and of the wanted outputs `y` [Co].

    Means over all positions of all images; of deviations from the mean if a norm follows, which
    removes the mean.
    """

    xx: Array  # [P, P]
    xy: Array  # [P, Co]
    yy: Array  # [Co]


def matchable(model: nn.Module, input_shape: Sequence[int]) -> list[LayerRecord]:
    """The layers whose outputs are matched, in the order in which the model calls them.

    These have a kernel that is not ordinary, and no groups.
    """
    records = {
        record.path: record
        for record in layer_records(model, input_shape)
        if record.kernel is not None
        and not isinstance(record.kernel, OrdinaryKernel)
        and record.groups == 1
    }
    return [records[path] for path in _call_order(model, input_shape) if path in records]


def _call_order(model: nn.Module, input_shape: Sequence[int]) -> list[tuple[str, ...]]:
    """The paths of the model's modules in the order of their first call."""
    order: dict[tuple[str, ...], None] = {}

    def watch(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        order.setdefault(context.module.path)
        return next_fun(*args, **kwargs)

    x = jax.ShapeDtypeStruct(tuple(input_shape), jnp.float32)
    with nn.intercept_methods(watch):
        jax.eval_shape(functools.partial(init, model, jax.random.key(0)), x)
    return list(order)


def placeless(record: LayerRecord) -> Kernel:
    """The kernel of a layer without its place in the network: equal for layers of equal shape."""
    assert record.kernel is not None
    alone = LayerGeometry(kind=record.kind, shape=record.shape, groups=record.groups)
    return dataclasses.replace(record.kernel, layer=alone)


def match_layer(
    record: LayerRecord,
    model: nn.Module,
    variables: Mapping[str, Any],
    teacher: nn.Module,
    teacher_variables: Mapping[str, Any],
    images: Array,
    spec: ProjectionSpec,
) -> tuple[dict[str, Array], float]:
    """Fits one layer's factors so that its output is that of the teacher's layer.

    The input is what the model, whose earlier layers have been fitted, feeds the layer; the wanted
    output is what the teacher computes from its own input.

    Returns:
        The new parameters of the kernel, and the relative squared error of the output.
    """
    records = layer_records(model, (1, *images.shape[1:]))
    moments = _moments(record, records, model, variables, teacher, teacher_variables, images)
    params = layer_factors(variables["params"], record)
    fitted, losses = _fit(placeless(record), params, moments, _is_normalised(record, records), spec)
    return fitted, float(losses[-1])


def _is_normalised(record: LayerRecord, records: Sequence[LayerRecord]) -> bool:
    """Whether a norm follows, so that every output channel counts alike, whatever its scale."""
    return any(r.follows is not None and (*r.path[:-1], r.follows) == record.path for r in records)


def _moments(
    record: LayerRecord,
    records: Sequence[LayerRecord],
    model: nn.Module,
    variables: Mapping[str, Any],
    teacher: nn.Module,
    teacher_variables: Mapping[str, Any],
    images: Array,
) -> Moments:
    """Runs both networks over the images."""
    bias = layer_params(variables["params"], record).get("bias", 0.0)

    @jax.jit
    def sums_of(variables: Any, teacher_variables: Any, batch: Array) -> Any:
        given = quantized_variables(records, variables)
        ours = captured_calls(model, given, batch, record.path, train=True)
        theirs = captured_calls(teacher, teacher_variables, batch, record.path, train=False)
        total = None
        for (x, _), (_, wanted) in zip(ours, theirs, strict=True):
            patches = patches_of(record, x).astype(jnp.float32)
            y = wanted.reshape(len(patches), -1).astype(jnp.float32) - bias
            precise = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
            products = precise(patches.T, patches), precise(patches.T, y), jnp.sum(y * y, 0)
            sums = (*products, jnp.sum(patches, 0), jnp.sum(y, 0), jnp.float32(len(patches)))
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        return total

    total: Any = None
    for batch in np.array_split(np.asarray(images), -(-len(images) // BATCH_SIZE)):
        sums = sums_of(variables, teacher_variables, batch)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    *means, count = total
    xx, xy, yy, x, y = (value / count for value in means)
    if not _is_normalised(record, records):
        return Moments(xx, xy, yy)
    return Moments(xx - jnp.outer(x, x), xy - jnp.outer(x, y), yy - y * y)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _fit(
    kernel: Kernel,
    params: dict[str, Array],
    moments: Moments,
    is_normalised: bool,
    spec: ProjectionSpec,
) -> tuple[dict[str, Array], Array]:
    """Adam on the squared error of the outputs; the rounding is straight-through."""

    def loss_of(params: dict[str, Array]) -> Array:
        weights = from_layout(kernel.build(kernel.quantize(params)))
        weights = weights.reshape(len(weights), -1).astype(jnp.float32)
        errors = _quadratic(weights, moments.xx) - 2 * jnp.sum(weights * moments.xy.T, 1)
        errors += moments.yy
        if is_normalised:
            return jnp.mean(errors / (moments.yy + _TINY))
        return jnp.sum(errors) / (jnp.sum(moments.yy) + _TINY)

    optimizer = optax.adam(learning_rate(spec))

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Array]:
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    carry = (params, optimizer.init(params))
    (params, _), losses = lax.scan(step, carry, None, length=spec.num_steps)
    return params, losses


def learning_rate(spec: ProjectionSpec) -> Any:
    """The rate, or a schedule, of a spec that has been resolved."""
    assert spec.num_steps is not None
    if spec.schedule == "constant":
        return spec.learning_rate
    return optax.cosine_decay_schedule(spec.learning_rate, spec.num_steps)


@jax.custom_vjp
def _quadratic(weights: Array, xx: Array) -> Array:
    """`w xx w^T` of every row of `weights`, with one large product for both passes.

    Backward: `2 dy w xx` for the symmetric `xx`, to which no gradient flows.
    Residuals: `w xx`.
    """
    return _quadratic_fwd(weights, xx)[0]


def _quadratic_fwd(weights: Array, xx: Array) -> tuple[Array, Array]:
    product = weights @ xx
    return jnp.sum(product * weights, 1), product


def _quadratic_bwd(product: Array, cotangent: Array) -> tuple[Array, None]:
    return 2 * cotangent[:, None] * product, None


_quadratic.defvjp(_quadratic_fwd, _quadratic_bwd)
