"""Flax NNX: layers with any kernel, kernel replacement in NNX models, conversion to Linen."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen, nnx, traverse_util
from flax.core import Scope

from mlg_jax import layers
from mlg_jax._checks import check_instance
from mlg_jax._types import Array, LayerGeometry
from mlg_jax.kernels import Kernels, KernelSpec, OrdinarySpec, by_path, matches_path
from mlg_jax.layers import KernelSwap
from mlg_jax.quant import QuantSpec

Path = tuple[Any, ...]


class _Layer(nnx.Module):
    """A Linen layer of this package, with its parameters as NNX variables of the same names."""

    def __init__(self, layer: linen.Module, params: Mapping[str, Array]) -> None:
        self.layer, self.names = layer, tuple(params)
        for name, value in params.items():
            setattr(self, name, nnx.Param(jnp.asarray(value)))

    def __call__(self, x: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        """The layer's output.

        Args:
            x: as in the Linen layer.
            rngs: for training with partial quantisation, streams including `quantize`; None rounds
                every entry.
        """
        params = {name: getattr(self, name)[...] for name in self.names}
        streams = {} if rngs is None else {"quantize": rngs.quantize()}
        options = {"train": rngs is not None, "rngs": streams}
        outputs: Any = self.layer.apply({"params": params}, x, **options)  # type: ignore[arg-type]
        return outputs


class Conv(_Layer):
    """`flax.nnx.Conv` in two dimensions, `[..., H, W, C]` to `[..., H', W', out_features]`.

    Args:
        in_features, out_features: channels.
        kernel_size: height and width, or one number for both.
        strides: per axis, or one number for both.
        kernel: the parametrisation of the kernel, as in `mlg_jax.layers.Conv`.
        implementation: how the kernel is applied, likewise.
        rngs: streams including `params`, for the initial values.
        **options: the other arguments of `flax.nnx.Conv`; `mlg_jax.layers.Conv` lists the supported
            values.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Any,
        strides: Any = 1,
        *,
        kernel: KernelSpec | QuantSpec = OrdinarySpec(),  # noqa: B008 frozen
        implementation: str = "auto",
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        layer = layers.Conv(
            out_features,
            kernel_size,
            strides,
            kernel=kernel,
            implementation=implementation,
            **options,
        )
        super().__init__(layer, _initial(layer, _image(kernel_size, options, in_features), rngs))


class Linear(_Layer):
    """`flax.nnx.Linear`, `[..., in_features]` to `[..., out_features]`; arguments as in `Conv`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel: KernelSpec | QuantSpec = OrdinarySpec(),  # noqa: B008 frozen
        implementation: str = "auto",
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        layer = layers.Dense(out_features, kernel=kernel, implementation=implementation, **options)
        super().__init__(layer, _initial(layer, (1, in_features), rngs))


def generate(
    model: Any,
    kernels: Kernels,
    *,
    weight_bits: int | None = None,
    implementation: str = "auto",
) -> Any:
    """Copies an NNX model with kernels of another parametrisation, projected from its own.

    Args:
        model: any NNX module; its two-dimensional `nnx.Conv` and its `nnx.Linear` layers get
            kernels of the given parametrisation.
        kernels: a `KernelSpec`, or `{path pattern: spec or None}`, as in `mlg_jax.generated`;
            paths are attribute names joined by slashes.
        weight_bits: width of ordinary kernels; None does not quantise them.
        implementation: how kernels are applied.

    Returns:
        The new model; its kernels start at the projection of the old ones.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a pattern matches no layer.
    """
    check_instance("model", model, nnx.Module)
    choices, model = by_path(kernels, weight_bits), nnx.clone(model)
    found = dict(_replaceable(model))
    paths = ["/".join(map(str, path)) for path in found]
    for pattern, _ in choices.choices:
        if not any(matches_path(pattern, path) for path in paths):
            raise ValueError(
                f"`kernels` must have patterns that match a layer of {paths}; got {pattern!r}."
            )
    for path, (plain, options) in found.items():
        layer = _linen_of(plain, options, choices, implementation)
        _set(model, path, _projected(layer, plain, choices, path))
    return model


class FromNNX(KernelSwap):
    """An NNX model as a Linen module; made by `to_linen`.

    Attributes:
        source: the NNX model, split into its graph and its state.
    """

    source: "_Source" = dataclasses.field(kw_only=True)

    @property
    def full_name(self) -> str:
        """The name of the NNX model's class, with its module."""
        kind = type(nnx.merge(self.source.graph, self.source.state))
        return f"{kind.__module__}.{kind.__qualname__}"

    @linen.compact
    def __call__(self, x: Array, *, train: bool = False) -> Any:
        """Calls the model in training or evaluation mode."""
        assert self.scope is not None
        replaced = self.source.replaced
        flat = [
            (path, leaf if _is_within(path, replaced) else leaf.replace(self._value(path, leaf)))
            for path, leaf in nnx.to_flat_state(self.source.state)
        ]
        model = nnx.merge(self.source.graph, nnx.from_flat_state(flat))
        for path, (plain, options) in replaced.items():
            layer = _linen_of(plain, options, self.kernel, self.implementation)
            scope = _scope_at(self.scope, path)
            _set(model, path, _Call(layer.clone(parent=scope, name=None), train))
        model.train() if train else model.eval()
        outputs = model(x)
        if not self.is_initializing():
            self._keep(nnx.to_flat_state(nnx.state(model)))
        if self.is_initializing():
            self.check_patterns(["/".join(map(str, path)) for path in replaced])
        return outputs

    def _keep(self, flat: Any) -> None:
        """Stores the model's variables in the mutable collections after a call."""
        for path, variable in flat:
            collection = _collection(variable)
            if collection not in (None, "params") and self.is_mutable_collection(collection):
                scope = _scope_at(self.scope, path[:-1])
                scope.put_variable(collection, str(path[-1]), variable[...])

    def _value(self, path: Path, variable: Any) -> Any:
        """The value of the Linen variable that replaces an NNX one."""
        if isinstance(variable, nnx.RngKey):
            return self.make_rng("dropout") if self.has_rng("dropout") else variable[...]
        collection = _collection(variable)
        if collection is None:
            return variable[...]
        scope, value = _scope_at(self.scope, path[:-1]), variable[...]
        if collection == "params":
            return scope.param(str(path[-1]), lambda key: value)
        return scope.variable(collection, str(path[-1]), lambda: value).value


def to_linen(model: Any) -> tuple[FromNNX, dict[str, Any]]:
    """An NNX model as a Linen module, for `compress`, `size_report`, `save_packed` and the like.

    Args:
        model: an NNX module called with images, made of plain layers or by `generate`.

    Returns:
        The Linen module, called as `(variables, x, train=…)`, and its variables: the collections
        `params`, `batch_stats` and one per other variable type, with the names in the model. A
        packed file names the model's class; to load it, convert a model of this class and pass it
        to `load_packed`.

    Raises:
        TypeError: `model` is not an NNX module.

    Examples:
        >>> network, variables = to_linen(model)  # doctest: +SKIP
        >>> shape = (1, 32, 32, 3)
        >>> save_packed("a.mlg", network, variables, input_shape=shape)  # doctest: +SKIP
        >>> predictor = load_packed("a.mlg", model=network)  # doctest: +SKIP
    """
    check_instance("model", model, nnx.Module)
    graph, state = nnx.split(model)
    flat: dict[str, dict[tuple[str, ...], Any]] = {"params": {}}
    for path, variable in nnx.to_flat_state(state):
        collection = _collection(variable)
        if collection is not None:
            flat.setdefault(collection, {})[tuple(map(str, path))] = variable[...]
    variables = {name: traverse_util.unflatten_dict(leaves) for name, leaves in flat.items()}
    shapes = tuple((p, v[...].shape, v[...].dtype) for p, v in nnx.to_flat_state(state))
    return FromNNX(source=_Source(graph, shapes, state)), variables


def _collection(variable: Any) -> str | None:
    """The Linen collection of an NNX variable; None for random state (a stream in Linen)."""
    if isinstance(variable, nnx.RngState):
        return None
    kinds = {nnx.Param: "params", nnx.BatchStat: "batch_stats"}
    found = (name for kind, name in kinds.items() if isinstance(variable, kind))
    return next(found, type(variable).__name__.lower())


@dataclasses.dataclass(frozen=True)
class _Source:
    """A split model; comparison covers structure, shapes and dtypes, but not values."""

    graph: Any
    shapes: tuple[Any, ...]
    state: Any = dataclasses.field(compare=False)

    @property
    def replaced(self) -> dict[Path, tuple[Any, Any]]:
        """The layers that are replaced during a call, by path, with their options."""
        model = nnx.merge(self.graph, self.state)
        return dict(_replaceable(model)) | dict(_own(model))


class _Call(nnx.Module):
    """A bound Linen layer in place of an NNX one."""

    def __init__(self, layer: linen.Module, train: bool) -> None:
        self.call: Callable[..., Any] = lambda x: layer(x, train=train)

    def __call__(self, x: Array, **_: Any) -> Array:
        return self.call(x)


def _is_within(path: Path, modules: Mapping[Path, Any]) -> bool:
    return any(path[: len(prefix)] == prefix for prefix in modules)


def _own(model: Any) -> Iterator[tuple[Path, tuple[_Layer, None]]]:
    """This package's layers, by path."""
    yield from ((p, (m, None)) for p, m in nnx.iter_modules(model) if isinstance(m, _Layer))


def _replaceable(model: Any) -> Iterator[tuple[Path, tuple[Any, dict[str, Any]]]]:
    """Plain layers, by path, with the options of the equivalent Linen layer."""
    for path, module in nnx.iter_modules(model):
        if type(module) is nnx.Conv and layers.is_planar(
            module.kernel_size, module.input_dilation, module.mask
        ):
            names = ("kernel_size", "strides", "padding", "kernel_dilation", "feature_group_count")
            yield path, (module, _options(module, names))
        elif type(module) is nnx.Linear:
            yield path, (module, _options(module, ()))


def _options(module: Any, names: tuple[str, ...]) -> dict[str, Any]:
    names += ("use_bias", "dtype", "param_dtype", "precision")
    return {"features": module.out_features} | {name: getattr(module, name) for name in names}


def _linen_of(plain: Any, options: Any, kernel: KernelSpec, implementation: Any) -> linen.Module:
    if isinstance(plain, _Layer):
        return plain.layer
    kind = layers.Conv if isinstance(plain, nnx.Conv) else layers.Dense
    return kind(**options, kernel=kernel, implementation=implementation)


def _projected(layer: Any, plain: Any, kernel: KernelSpec, path: Path) -> _Layer:
    """A layer whose kernel is projected from that of a plain layer.

    The new layer has no path in a Linen model, so `kernel` is resolved for `path` here.
    """
    image = _image(
        getattr(layer, "kernel_size", None),
        {"kernel_dilation": getattr(layer, "kernel_dilation", 1)},
        plain.in_features,
    )
    (record,) = layers.layer_records(layer, image)
    geometry = LayerGeometry(tuple(map(str, path)), record.kind, record.shape, record.groups)
    bound = kernel.bind(geometry)
    assert bound is not None, "patterns have a default"
    bias = {"bias": plain.bias[...]} if plain.use_bias else {}
    return _Layer(layer.clone(kernel=bound.spec), bound.project(plain.kernel[...]) | bias)


def _image(kernel_size: Any, options: Mapping[str, Any], channels: int) -> tuple[int, ...]:
    """A valid input shape of a layer, for one sample."""
    if kernel_size is None:
        return (1, channels)
    dilation = options.get("kernel_dilation", 1) or 1
    sizes = kernel_size if isinstance(kernel_size, list | tuple) else (kernel_size,) * 2
    dilations = dilation if isinstance(dilation, list | tuple) else (dilation,) * 2
    return (1, *(k * d for k, d in zip(sizes, dilations, strict=True)), channels)


def _initial(layer: linen.Module, shape: tuple[int, ...], rngs: nnx.Rngs) -> dict[str, Array]:
    return dict(layer.init(rngs.params(), jnp.zeros(shape))["params"])


def _scope_at(scope: Scope | None, path: Path) -> Scope:
    assert scope is not None
    for name in path:
        scope = scope.push(str(name), reuse=True)
    return scope


def _set(model: Any, path: Path, value: Any) -> None:
    """Replaces the module at `path` by `value`."""
    *parents, last = path
    for name in parents:
        model = model[name] if isinstance(name, int) else getattr(model, name)
    if isinstance(last, int):
        model[last] = value
    else:
        setattr(model, last, value)
