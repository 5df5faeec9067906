"""Converts state dicts of PyTorch networks to our variables and back: names, layouts, norms."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from mlg_jax._errors import printable
from mlg_jax.export._torch_names import Names, TorchNames, torch_names
from mlg_jax.export._torch_wrappers import own_names
from mlg_jax.kernels import Kernel, LayerRecord

State = Mapping[str, np.ndarray]  # parameters and buffers by name, as PyTorch's `state_dict`
Path = tuple[str, ...]

_EPSILON = 1e-5  # of the norms, in PyTorch and here
_NORM_LEAVES = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
# Counters, and the arrays of the original code's quantisers apart from the ranges.
_IGNORED = r".*\.(num_batches_tracked|\w+_quantizer\..*)"
_MAX_LISTED = 8  # names of one kind in an error message


def from_torch(
    state: State,
    records: Sequence[LayerRecord],
    template: Mapping[str, Any],
    *,
    architecture: str,
) -> dict[str, Any]:
    """Converts the state dict of a PyTorch network to variables of the same architecture.

    Supported are the names of torchvision (ResNet-18 to 152, VGG-16, MobileNetV2, AlexNet,
    SqueezeNet 1.1), of its CIFAR variants (`shortcut`, `linear`) and of the original MLG code,
    which stores each basis in a corner of a full-size weight. A bias before a norm is subtracted
    from the running mean of the norm. Norms that the model does not have (vgg16_bn to `vgg16` with
    stem `imagenet`) are folded into the kernels, which preserves the logits in evaluation mode.

    Args:
        state: arrays by name, e.g. from `read_torch`. The prefixes of wrappers (`module.`,
            `_orig_mod.`, `model.`, any that all names share) and their counters are ignored.
        records: of the model, from `layer_records`.
        template: the model's variables, or their shapes and dtypes.
        architecture: the model's name in `create_model`, or the name of its class.

    Returns:
        Variables with the structure and dtypes of the template. Activation ranges that the state
        dict does not contain are unset.

    Raises:
        ValueError: the architecture is not supported; or arrays are missing, left over or of
            another shape, in which case the message lists all of them.

    Reference: https://pytorch.org/vision/stable/models.html, https://arxiv.org/abs/2108.11430.
    """
    source = _Source(state)
    names = torch_names(architecture, records, has_norms=source.has_norms)
    found: dict[Path, np.ndarray] = {}
    for record in records:
        take = _take_norm if record.kernel is None else _take_product
        found |= take(source, record, names)
    for record in records:
        if record.follows is not None:
            _take_bias_off_mean(source, record, names, found)
    wanted = traverse_util.flatten_dict(dict(template))
    for path in wanted:
        if path[-2:] == ("range", "is_set"):
            found |= _take_range(source, path[:-1], names)
    source.check()
    flat = {path: np.asarray(found[path], leaf.dtype) for path, leaf in wanted.items()}
    return traverse_util.unflatten_dict(flat)


def to_torch(
    records: Sequence[LayerRecord], variables: Mapping[str, Any], *, architecture: str
) -> dict[str, np.ndarray]:
    """The state dict of the same network with ordinary kernels and torchvision's names.

    Kernels are generated from quantised factors, and ordinary kernels are quantised, so the logits
    are those of the model in evaluation mode. Convolutions of a VGG with norms get zero biases,
    because torchvision's have biases. `num_batches_tracked` is omitted; PyTorch initialises it.

    Args:
        records: of the model, from `layer_records`.
        variables: the model's `params` and `batch_stats`; factors in a collection `factors` are
            taken as already quantised.
        architecture: the model's name in `create_model`, or the name of its class.

    Returns:
        float32 arrays by name, kernels `[out, in, height, width]` or `[out, in]`.

    Raises:
        ValueError: the architecture is not supported, or activations are quantised, which
            torchvision's networks cannot represent.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    quantized = next((path for path in flat if "input_quant" in path), None)
    if quantized is not None:
        raise ValueError(
            f"`variables` must come from a network without activation bits; got "
            f"{'/'.join(quantized)}."
        )
    has_norms = any(record.kind == "norm" for record in records)
    names = torch_names(architecture, records, has_norms=has_norms)
    is_pointwise = (
        architecture.lower() == "squeezenet"
    )  # SqueezeNet's classifier is a 1 x 1 convolution
    kernels = built_kernels(records, variables)
    state: dict[str, np.ndarray] = {}
    for record in records:
        if record.kernel is None:
            module = names.norms[_conv_of(record)][0]
            values = _norm_values(flat, record)
        else:
            module = names.layers[record.name][0]
            values = {"weight": _to_torch(np.asarray(kernels[record.name]))}
            if "bias" in record.factor_names:
                values["bias"] = flat[("params", *record.path, "bias")]
            if has_norms and re.fullmatch(r"features\.\d+", module):
                values.setdefault("bias", np.zeros(len(values["weight"])))
            if is_pointwise and record.kind == "dense":
                values["weight"] = values["weight"][..., None, None]
        state |= {f"{module}.{k}": np.asarray(v, np.float32) for k, v in values.items()}
    return state


def torch_num_classes(state: State, records: Sequence[LayerRecord], *, architecture: str) -> int:
    """The number of classes of a state dict: the rows of its classifier.

    Raises:
        ValueError: the architecture is not supported, or the classifier is missing or empty.
    """
    source = _Source(state)
    names = torch_names(architecture, records, has_norms=source.has_norms).layers["classifier"]
    weight = source.optional(names, "weight")
    if weight is None or weight.size == 0 or weight.ndim == 0:
        what = "it is missing" if weight is None else f"its shape is {weight.shape}"
        raise ValueError(f"`state` must hold {names[0]}.weight; {what}.")
    return weight.shape[0]


class _Source:
    """A state dict that records which arrays were used, missing or of another shape."""

    def __init__(self, state: State) -> None:
        self._state = {own: np.asarray(state[name]) for name, own in own_names(state).items()}
        self._used: set[str] = set()
        self._missing: list[str] = []
        self._misshapen: list[str] = []

    @property
    def has_norms(self) -> bool:
        return any(name.endswith(".running_mean") for name in self._state)

    def has(self, modules: Names, leaf: str) -> bool:
        return any(f"{module}.{leaf}" in self._state for module in modules)

    def optional(self, modules: Names, leaf: str) -> np.ndarray | None:
        """The array `leaf` of the first of `modules` that has it, or None."""
        for name in (f"{module}.{leaf}" for module in modules):
            if name in self._state:
                self._used.add(name)
                return self._state[name]
        return None

    def take(self, modules: Names, leaf: str, *shapes: tuple[int, ...]) -> np.ndarray:
        """The array, reshaped from any of `shapes` to the first; zeros if absent or misshapen."""
        value = self.optional(modules, leaf)
        if value is None:
            self._missing.append(f"{modules[0]}.{leaf}")
        elif value.shape not in shapes:
            self._misshapen.append(f"{modules[0]}.{leaf} is {value.shape}, not {shapes[0]}")
        else:
            return value.reshape(shapes[0])
        return np.zeros(shapes[0], np.float32)

    def check(self) -> None:
        """Raises ValueError if arrays were missing, misshapen or not used."""
        extra = sorted(
            name for name in set(self._state) - self._used if not re.fullmatch(_IGNORED, name)
        )
        kinds = {"missing": self._missing, "left over": extra, "of another shape": self._misshapen}
        faults = [f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names]
        if faults:
            raise ValueError(
                f"`state` must hold the model's arrays and no others; got {'; '.join(faults)}."
            )


def _listed(names: Sequence[str]) -> str:
    more = [f"{len(names) - _MAX_LISTED} more"] if len(names) > _MAX_LISTED else []
    return ", ".join([*(printable(name, 80) for name in names[:_MAX_LISTED]), *more])


def _conv_of(norm: LayerRecord) -> str:
    """The path of the convolution that a norm follows."""
    return "/".join((*norm.path[:-1], norm.follows or ""))


def _take_norm(source: _Source, record: LayerRecord, names: TorchNames) -> dict[Path, np.ndarray]:
    shape = record.factors[0].shape
    return {
        (collection, *record.path, ours): source.take(names.norms[_conv_of(record)], theirs, shape)
        for theirs, (collection, ours) in _NORM_LEAVES.items()
    }


def _take_product(
    source: _Source, record: LayerRecord, names: TorchNames
) -> dict[Path, np.ndarray]:
    """The parameters of a convolution or dense layer."""
    assert record.kernel is not None
    modules, norm = names.layers[record.name], names.norms.get(record.name, ())
    values = record.kernel.from_torch(_Module(source, modules))
    if "bias" in record.factor_names:
        shape = (record.kernel_shape.out_channels,)
        is_folded = source.has(norm, "running_mean")
        if is_folded and not source.has(modules, "bias"):
            values["bias"] = np.zeros(shape)
        else:
            values["bias"] = source.take(modules, "bias", shape)
        if is_folded:
            values = _folded(source, norm, record.kernel, values)
    return {("params", *record.path, name): value for name, value in values.items()}


class _Module:
    """One module of a state dict: the argument of `Kernel.from_torch`."""

    def __init__(self, source: _Source, modules: Names) -> None:
        self._source, self._modules = source, modules

    def has(self, name: str) -> bool:
        return self._source.has(self._modules, name)

    def take(self, name: str, *shapes: tuple[int, ...]) -> np.ndarray:
        return self._source.take(self._modules, name, *shapes)


def _folded(
    source: _Source, norm: Names, kernel: Kernel, values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The parameters of a convolution with its norm folded in."""
    scale, shift, mean, var = (
        source.take(norm, leaf, values["bias"].shape).astype(np.float64) for leaf in _NORM_LEAVES
    )
    gain = scale / np.sqrt(var + _EPSILON)
    factors = {name: value for name, value in values.items() if name != "bias"}
    bias = (values["bias"] - mean) * gain + shift
    return {**kernel.scale_outputs(factors, gain), "bias": bias}


def _take_bias_off_mean(
    source: _Source, norm: LayerRecord, names: TorchNames, found: dict[Path, np.ndarray]
) -> None:
    """Subtracts a convolution's bias from the running mean of the norm that follows.

    In training the bias has no effect, because it is part of the batch mean.
    """
    mean, modules = ("batch_stats", *norm.path, "mean"), names.layers[_conv_of(norm)]
    if source.has(modules, "bias"):
        found[mean] = found[mean] - source.take(modules, "bias", found[mean].shape)


def _take_range(source: _Source, path: Path, names: TorchNames) -> dict[Path, np.ndarray]:
    """The range of an activation quantiser, at `(collection, *layer, "input_quant", "range")`."""
    modules = names.layers["/".join(path[1:-2])]
    ends = [source.optional(modules, f"input_quantizer.obs.{end}_val") for end in ("min", "max")]
    found = [end.reshape(()) for end in ends if end is not None and end.size == 1]
    is_set = len(found) == 2 and bool(np.all(np.isfinite(found)))  # infinite before training
    low, high = found if is_set else (np.zeros(()), np.zeros(()))
    return {
        (*path, "minimum"): low,
        (*path, "maximum"): high,
        (*path, "is_set"): np.asarray(is_set),
    }


def _norm_values(arrays: Mapping[Path, Any], record: LayerRecord) -> dict[str, Any]:
    return {
        theirs: arrays[(collection, *record.path, ours)]
        for theirs, (collection, ours) in _NORM_LEAVES.items()
    }


def built_kernels(
    records: Sequence[LayerRecord], variables: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The kernels of all layers, by layer, as the network uses them; built by a single program."""
    arrays = traverse_util.flatten_dict(dict(variables))
    kernels = {r.name: (r.path, r.kernel) for r in records if r.kernel is not None}
    collection = "factors" if any(path[0] == "factors" for path in arrays) else "params"

    @jax.jit
    def build(factors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        def one(kernel: Kernel, stored: Mapping[str, Any]) -> Any:
            return kernel.build(stored if collection == "factors" else kernel.quantize(stored))

        return {name: one(kernel, factors[name]) for name, (_, kernel) in kernels.items()}

    return build(
        {
            name: {f.name: arrays[(collection, *path, f.name)] for f in kernel.factors}
            for name, (path, kernel) in kernels.items()
        }
    )


def _to_torch(kernel: np.ndarray) -> np.ndarray:
    return kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
