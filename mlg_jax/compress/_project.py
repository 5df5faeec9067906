"""Projection of a trained model onto generated kernels, by weights or by outputs."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import traverse_util

from mlg_jax._checks import check_instance, check_integer
from mlg_jax._convolution import from_layout
from mlg_jax._types import Array, Float, Key
from mlg_jax.compress._match import learning_rate, match_layer, matchable, placeless
from mlg_jax.compress._sensitivity import check_images, replaced
from mlg_jax.compress._start import (
    check_shape,
    clipped_factors,
    initial_factors,
    ordinary_model,
    trained_kernel,
    with_ordinary_kernels,
)
from mlg_jax.compress._statistics import estimate_statistics
from mlg_jax.generation import ProjectionSpec
from mlg_jax.kernels import Kernel, LayerRecord, OrdinaryKernel
from mlg_jax.layers import (
    input_shape_of,
    layer_records,
    variable_shapes,
)
from mlg_jax.quant import wide
from mlg_jax.train import scale_by_radam

_DEFAULT = ProjectionSpec()

History = tuple[tuple[int, float], ...]
Factors = dict[str, Array]  # of a group of layers with equal shapes, stacked on a leading axis
GroupKey = Kernel  # bound to a layer that has only a kind, a kernel shape and groups


class ProjectionStore(Protocol):
    """Persistent storage for the state of a projection, so that another process can resume it."""

    def load(self) -> tuple[Sequence[Any], History] | None:
        """The arguments of the last `save`; None if nothing was saved."""

    def save(self, leaves: Sequence[Array], history: History) -> None:
        """Stores the state's arrays, in this order, and the loss curve so far."""


@dataclasses.dataclass(frozen=True)
class Projection:
    """A projected model."""

    variables: dict[str, Any]  # for the student's `apply`
    # Relative squared error by layer: of the quantised kernel or, if the projection saw images, of
    # the output.
    errors: dict[str, float]
    # (step, sum over layers of mean squared errors); with images (layer, relative squared error).
    history: History


def project_model(
    model: nn.Module,
    teacher_variables: Mapping[str, Any],
    *,
    key: Key,
    spec: ProjectionSpec = _DEFAULT,
    images: Float[Array, "n h w c"] | None = None,
    input_shape: Sequence[int] | None = None,
    report_every: int = 100,
    on_report: Callable[[int, float], None] = lambda step, loss: None,
    store: "ProjectionStore | None" = None,
    start: Mapping[str, Mapping[str, Array]] | None = None,
) -> Projection:
    """Fits a model with generated kernels to a trained one of the same architecture.

    With metric `data` and images, one layer after another is fitted so that its output on the
    images is that of the teacher's layer, given what the layers fitted before make of the images;
    where a norm follows, every output channel counts alike. Then the running statistics are
    estimated. (Convolutions with groups keep the closed form.)

    With metric `weights`, as published, it minimises `sum over layers of mean (W(quantised factors)
    - W_teacher)^2`. Layers of equal shape are fitted together, batched, in one compiled step.

    Norms, biases and kernels that are not generated are copied, and so are running statistics with
    metric `weights`.

    Args:
        model: the student, from `create_model(..., generation=...)` or `generated`.
        teacher_variables: `params` and `batch_stats` of the same architecture with ordinary
            kernels.
        key: seeds the initial values of `l2`.
        spec: the method and its settings.
        images: `[N, H, W, C]`, normalised for the model; some thousands are best. None projects by
            weights.
        input_shape: `[N, H, W, C]` to call the model with; None takes `model.input_shape`.
        report_every: number of steps between calls of `on_report` and entries of the history, with
            metric `weights`; with `data`, they follow every layer.
        on_report: called with the step and the loss before that step, or with the number of the
            layer and the relative squared error of its output.
        store: stores the state after every call of `on_report`. A stored state is resumed, and the
            result is bit-identical. None stores nothing.
        start: initial factors of every generated layer, by layer and factor name; None uses those
            of the method.

    Returns:
        Variables of the student, relative errors by layer, the loss curve.

    Raises:
        ValueError: the arrays in `teacher_variables` do not have the student's names and shapes, or
            `start` does not have the factors of the student.

    Reference: https://arxiv.org/abs/2108.11430, section 3 ("l2 projection").
    """
    check_integer("report_every", report_every, 1)
    check_instance("spec", spec, ProjectionSpec)
    if images is not None:
        check_images(images)
        input_shape = (1, *images.shape[1:])
    shape = input_shape_of(model, input_shape)
    spec = spec.resolved(has_images=images is not None)
    if images is not None and spec.metric == "data":
        return _match(model, teacher_variables, images, shape, key, spec, on_report, store, start)
    groups = _group(layer_records(model, shape))
    variables = _copy(model, shape, groups, teacher_variables)
    targets = {k: _targets(v, teacher_variables["params"]) for k, v in groups.items()}
    dtypes = {k: t.dtype for k, t in targets.items()}
    if start is not None:
        factors = _given(groups, dtypes, start)
    else:
        factors = _drawn(groups, dtypes, key) if spec.method == "l2" else _decomposed(targets)
    history: History = ()
    if spec.method != "svd":
        factors, history = _minimise(factors, targets, spec, report_every, on_report, store)
    params = variables["params"]
    errors: dict[str, float] = {}
    for group, members in groups.items():
        relative = _relative_errors(group, factors[group], targets[group])
        for i, record in enumerate(members):
            errors[record.name] = float(relative[i])
            for name, stacked in factors[group].items():
                params[(*record.path, name)] = stacked[i]
    nested = {name: traverse_util.unflatten_dict(flat) for name, flat in variables.items()}
    return Projection(nested, errors, history)


def _match(
    model: nn.Module,
    teacher_variables: Mapping[str, Any],
    images: Array,
    shape: tuple[int, ...],
    key: Key,
    spec: ProjectionSpec,
    on_report: Callable[[int, float], None],
    store: ProjectionStore | None,
    start: Mapping[str, Mapping[str, Array]] | None,
) -> Projection:
    """The projection with metric `data`."""
    records = layer_records(model, shape)
    groups = _group(records)
    copied = _copy(model, shape, groups, teacher_variables)
    if start is not None:
        _check_start(groups, start)
    else:
        start = clipped_factors(model, teacher_variables, shape)
        if spec.method == "l2":
            start = initial_factors(start, records, key)
    for record in records:
        for name, value in start.get(record.name, {}).items():
            copied["params"][(*record.path, name)] = value
    nested = {name: traverse_util.unflatten_dict(flat) for name, flat in copied.items()}
    variables = with_ordinary_kernels(model, nested, shape)
    history: list[tuple[int, float]] = []
    if store is not None and (stored := store.load()) is not None:
        leaves, history = [jnp.asarray(leaf) for leaf in stored[0]], list(stored[1])
        variables = jax.tree.unflatten(jax.tree.structure(variables), leaves)
    teacher = ordinary_model(model)
    layers = matchable(model, shape) if spec.method != "svd" else []
    for index, record in list(enumerate(layers))[len(history) :]:
        fitted, error = match_layer(
            record, model, variables, teacher, teacher_variables, images, spec
        )
        for name, value in fitted.items():
            path = (*record.path, name)
            variables = {**variables, "params": replaced(variables["params"], path, value)}
        history.append((index, error))
        on_report(index, error)
        if store is not None:
            store.save(jax.tree.leaves(variables), tuple(history))
    errors = {layers[index].name: error for index, error in history}
    return Projection(estimate_statistics(model, variables, images), errors, tuple(history))


Flat = dict[tuple[str, ...], Array]


def _copy(
    model: nn.Module,
    input_shape: tuple[int, ...],
    groups: Mapping[GroupKey, Sequence[LayerRecord]],
    teacher_variables: Mapping[str, Any],
) -> dict[str, Flat]:
    """The student's variables by path, taken from the teacher; generated factors are left out.

    The teacher may lack only the ranges of activation quantisers, which then start unset.
    """
    shapes = variable_shapes(model, input_shape)
    left_out = {
        (*record.path, factor.name)
        for kernel, members in groups.items()
        for record in members
        for factor in kernel.factors
    }
    copied: dict[str, Flat] = {}
    for collection, tree in shapes.items():
        source = traverse_util.flatten_dict(teacher_variables.get(collection, {}))
        copied[collection] = {}
        for path, leaf in traverse_util.flatten_dict(tree).items():
            if collection == "params" and path in left_out:
                continue
            if path in source:
                check_shape(collection, path, source[path].shape, leaf.shape)
            elif "input_quant" not in path:
                raise ValueError(
                    f"`teacher_variables` must hold {collection} {'/'.join(path)}; it is missing."
                )
            value = source.pop(path, None)
            copied[collection][path] = jnp.zeros(leaf.shape, leaf.dtype)
            if value is not None:
                copied[collection][path] = jnp.asarray(value, leaf.dtype)
        kernels = {(*r.path, "kernel") for members in groups.values() for r in members}
        surplus = sorted("/".join(path) for path in set(source) - kernels)
        if surplus:
            raise ValueError(
                f"`teacher_variables` must be of the student's architecture; got {collection} "
                f"{surplus[0]}, which the student does not have."
            )
    return copied


def _group(records: Sequence[LayerRecord]) -> dict[GroupKey, list[LayerRecord]]:
    """Layers whose kernel is not ordinary, grouped by spec and kernel shape."""
    groups: dict[GroupKey, list[LayerRecord]] = collections.defaultdict(list)
    for record in records:
        if record.kernel is not None and not isinstance(record.kernel, OrdinaryKernel):
            groups[placeless(record)].append(record)
    return dict(groups)


def _targets(records: Sequence[LayerRecord], teacher_params: Any) -> Array:
    """The teacher's kernels of a group in Flax's layout, stacked on a leading axis."""
    return jnp.stack([wide(trained_kernel(teacher_params, record)) for record in records])


def _drawn(
    groups: Mapping[GroupKey, Sequence[LayerRecord]], dtypes: Mapping[GroupKey, Any], key: Key
) -> dict[GroupKey, Factors]:
    """Random initial factors from the layers' initialisers, stacked by group."""
    start: dict[GroupKey, Factors] = {}
    for group, members in groups.items():
        start[group] = {}
        for factor in group.factors:
            key, subkey = jax.random.split(key)
            shape = (len(members), *factor.shape)
            start[group][factor.name] = factor.init(subkey, shape, dtypes[group])
    return start


def _given(
    groups: Mapping[GroupKey, Sequence[LayerRecord]],
    dtypes: Mapping[GroupKey, Any],
    start: Mapping[str, Mapping[str, Array]],
) -> dict[GroupKey, Factors]:
    """The caller's factors, stacked by group."""
    _check_start(groups, start)
    return {
        group: {
            f.name: jnp.stack([jnp.asarray(start[r.name][f.name], dtypes[group]) for r in members])
            for f in group.factors
        }
        for group, members in groups.items()
    }


def _check_start(
    groups: Mapping[GroupKey, Sequence[LayerRecord]], start: Mapping[str, Mapping[str, Array]]
) -> None:
    """Raises ValueError unless every layer has its factors."""
    for group, members in groups.items():
        wanted = {factor.name: factor.shape for factor in group.factors}
        for record in members:
            found = {name: jnp.shape(v) for name, v in start.get(record.name, {}).items()}
            if found != wanted:
                raise ValueError(
                    f"`start` must have factors of shapes {wanted} for {record.name}; got {found}."
                )


def _decomposed(targets: Mapping[GroupKey, Array]) -> dict[GroupKey, Factors]:
    """The closed-form factors, stacked by group."""
    return {group: jax.vmap(group.project)(kernels) for group, kernels in targets.items()}


def _kernels(kernel: Kernel, params: Factors) -> Array:
    """Quantised generated kernels of a group, `[L, Co, Ci, K]`."""
    return jax.vmap(lambda layer: from_layout(kernel.build(kernel.quantize(layer))))(params)


def _minimise(
    factors: dict[GroupKey, Factors],
    targets: dict[GroupKey, Array],
    spec: ProjectionSpec,
    report_every: int,
    on_report: Callable[[int, float], None],
    store: "ProjectionStore | None",
) -> tuple[dict[GroupKey, Factors], History]:
    """RAdam on the sum of mean squared errors."""
    groups = tuple(factors)
    assert spec.num_steps is not None
    optimizer = optax.chain(scale_by_radam(), optax.scale_by_learning_rate(learning_rate(spec)))

    def loss_of(values: list[Factors], goals: list[Array]) -> Array:
        errors = [
            jnp.sum(jnp.mean(jnp.square(_kernels(g, v) - t), (1, 2, 3)))
            for g, v, t in zip(groups, values, goals, strict=True)
        ]
        return functools.reduce(jnp.add, errors)

    @functools.partial(jax.jit, static_argnums=(3,), donate_argnums=(0, 1))
    def steps(values: Any, state: Any, goals: list[Array], count: int) -> tuple[Any, Any, Array]:
        def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Array]:
            values, state = carry
            loss, grads = jax.value_and_grad(loss_of)(values, goals)
            updates, state = optimizer.update(grads, state, values)
            return (optax.apply_updates(values, updates), state), loss

        carry, losses = jax.lax.scan(step, (values, state), None, length=count)
        return *carry, losses[0]

    values = [factors[g] for g in groups]
    goals = [jax.vmap(from_layout)(targets[g]) for g in groups]
    state = optimizer.init(values)
    history: list[tuple[int, float]] = []
    if store is not None and (stored := store.load()) is not None:
        leaves, history = stored[0], list(stored[1])
        structure = jax.tree.structure((values, state))
        values, state = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in leaves])
    for start in range(len(history) * report_every, spec.num_steps, report_every):
        count = min(report_every, spec.num_steps - start)
        values, state, loss = steps(values, state, goals, count)
        history.append((start, float(loss)))
        on_report(*history[-1])
        if store is not None:
            store.save(jax.tree.leaves((values, state)), tuple(history))
    return dict(zip(groups, values, strict=True)), tuple(history)


@functools.partial(jax.jit, static_argnums=0)
def _relative_errors(kernel: Kernel, params: Factors, targets: Array) -> Array:
    """`|W - T|^2 / |T|^2` for each layer of a group, `[L]`."""
    targets = jax.vmap(from_layout)(targets)
    difference = jnp.sum(jnp.square(_kernels(kernel, params) - targets), (1, 2, 3))
    return difference / jnp.maximum(jnp.sum(jnp.square(targets), (1, 2, 3)), 1e-30)
