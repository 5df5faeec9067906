"""Candidate kernels for each layer, with their sizes and their effect on the network's output."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlg_jax._checks import check_floating, check_instance
from mlg_jax._convolution import from_layout, to_layout
from mlg_jax._types import Array, Float
from mlg_jax.compress._spec import AllocationSpec
from mlg_jax.kernels import (
    ClosedForm,
    GenerationSpec,
    LayerRecord,
    OrdinarySpec,
    by_path,
    is_plain,
    rounded_kernel,
)
from mlg_jax.layers import forward, generated, layer_params, layer_records
from mlg_jax.models import ModelSpec, size_report
from mlg_jax.quant import QuantSpec, round_clipped

_DEFAULT = AllocationSpec()
_BATCH_SIZE = 128  # images that share their batch statistics while divergences are measured


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A possible replacement of one layer's kernel, with its size and its errors."""

    generation: GenerationSpec | None  # None: an ordinary kernel at the model's `weight_bits`
    num_bits: int
    error: float  # relative squared error of the kernel, |W' - W|^2 / |W|^2
    # KL(network || network with this kernel replaced), nats per image, measured or interpolated
    kl: float


@dataclasses.dataclass(frozen=True)
class LayerChoices:
    """The candidates for one layer, in order of size."""

    name: str
    choices: tuple[Candidate, ...]


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The candidates for all layers, from which `allocate` chooses."""

    layers: tuple[LayerChoices, ...]
    fixed_bits: int  # of everything that has no candidates: norms, biases, classifier
    weight_bits: int | None  # of the classifier and of ordinary kernels

    @property
    def smallest_bits(self) -> int:
        """Size in bits of the smallest model that can be chosen."""
        return self.fixed_bits + sum(min(c.num_bits for c in r.choices) for r in self.layers)


def measure_sensitivity(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Float[Array, "n h w c"],
    *,
    spec: AllocationSpec = _DEFAULT,
    on_report: Callable[[LayerChoices], None] = lambda layer: None,
) -> Sensitivity:
    """Measures on real images how generating one kernel at a time changes the network's output.

    Candidates are measured for every convolution, and for dense layers if `create_model` did not
    make the model. The grid of `spec` is projected in closed form and reduced to the convex hull
    of squared error against bits. Some kernels of the hull then replace the layer's own, one layer
    at a time, while the network runs with batch statistics, because running statistics will be
    estimated again. `kl` is the divergence of the predicted class probabilities, which needs no
    labels; for kernels between two measured ones it is interpolated by their errors.

    Args:
        model: a trained network with ordinary kernels: from `create_model`, or any Linen module of
            plain Flax layers.
        variables: its parameters and statistics.
        images: `[N, H, W, C]`, normalised for the network; the first `spec.num_images` are used.
        spec: the candidates, and how many kernels and images are measured.
        on_report: called with each layer once it is measured.

    Returns:
        The candidates for each of these layers, with sizes and divergences.

    Raises:
        TypeError, ValueError: `images` is empty, `model` has generated kernels, or `variables` do
            not fit it.
    """
    fixed_bits = check_compressible(model, variables, images, spec)
    kl_of = _harm_function(model, variables, images[: spec.num_images])
    layers = []
    for record in compressible(model, images):
        layers.append(_measure(record, variables["params"], spec, kl_of))
        on_report(layers[-1])
    return Sensitivity(tuple(layers), fixed_bits, spec.weight_bits)


def check_compressible(
    model: nn.Module, variables: Mapping[str, Any], images: Any, spec: AllocationSpec
) -> int:
    """Raises unless the arguments fit together; returns the bits of all that has no candidates."""
    check_trained(model, variables, images)
    ordinary = variant(model, None, spec.weight_bits)
    sizes = size_report(ordinary, variables, input_shape=(1, *images.shape[1:]))
    chosen = sum(_ordinary_bits(r, spec.weight_bits) for r in compressible(model, images))
    return sizes.total.num_bits - chosen


def compressible(model: nn.Module, images: Array) -> list[LayerRecord]:
    """The layers whose kernels may be generated.

    In a model from `create_model` the convolutions; in others all layers with replaceable kernels.
    """
    records = layer_records(variant(model, None, None), (1, *images.shape[1:]))
    kinds = ("conv",) if is_own(model) else ("conv", "dense")
    return [record for record in records if record.kind in kinds]


def variant(model: nn.Module, generation: Any, weight_bits: int | None) -> nn.Module:
    """The same architecture with other kernels."""
    if not is_own(model):
        return generated(model, by_path(generation, weight_bits))
    changed = dataclasses.replace(model.spec, generation=generation, weight_bits=weight_bits)
    return changed.create()


def is_own(model: nn.Module) -> bool:
    """Whether `create_model` made it."""
    return isinstance(getattr(model, "spec", None), ModelSpec)


def check_trained(model: nn.Module, variables: Mapping[str, Any], images: Any) -> None:
    """Raises unless `model` has ordinary kernels that are not quantised, and `variables` fit."""
    check_instance("model", model, nn.Module)
    check_instance("variables", variables, Mapping)
    check_images(images)
    for record in layer_records(model, (1, *images.shape[1:])):
        spec = OrdinarySpec() if record.kernel is None else record.kernel.spec
        if not is_plain(spec):
            raise ValueError(
                f"`model` must have ordinary kernels that are not quantised; {record.name} has "
                f"{spec!r}."
            )
    if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(variables)):
        raise ValueError("`variables` must be finite; got a NaN or an infinity.")


def check_images(images: Any) -> None:
    """Raises unless `images` is floating `[N, H, W, C]` and not empty."""
    check_floating("images", images)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"`images` must hold at least one image, [N, H, W, C]; got shape {images.shape}."
        )


def _measure(
    record: LayerRecord,
    params: Any,
    spec: AllocationSpec,
    kl_of: Callable[[LayerRecord, np.ndarray], float],
) -> LayerChoices:
    """The candidates for one layer: generated kernels and the ordinary one."""
    kernel = np.asarray(from_layout(layer_params(params, record)["kernel"]), np.float32)
    candidates = spec.grid.candidates(kernel, record.kernel_shape)
    curve = {
        c.error: kl_of(record, rounded_kernel(kernel, c.generation, record.kernel_shape))
        for c in _spread(candidates, spec.num_measured)
    }
    errors = sorted(curve)
    choices = [
        Candidate(
            c.generation,
            c.num_bits,
            c.error,
            float(np.interp(c.error, errors, [curve[e] for e in errors])),
        )
        for c in candidates
    ]
    ordinary = kernel if spec.weight_bits is None else round_clipped(kernel, spec.weight_bits)
    error = float(np.sum((ordinary - kernel) ** 2)) / max(float(np.sum(kernel**2)), 1e-30)
    num_bits = _ordinary_bits(record, spec.weight_bits)
    choices.append(Candidate(None, num_bits, error, kl_of(record, ordinary)))
    return LayerChoices(record.name, tuple(sorted(choices, key=lambda c: c.num_bits)))


def _spread(candidates: list[ClosedForm], count: int) -> list[ClosedForm]:
    """At most `count` candidates, spread evenly in the logarithm of bits, including both ends."""
    if not candidates:  # a kernel too small for any factors
        return []
    sizes = np.log([c.num_bits for c in candidates])
    wanted = np.linspace(sizes[0], sizes[-1], count)
    picks = {int(np.argmin(np.abs(sizes - size))) for size in wanted}
    return [candidates[i] for i in sorted(picks)]


def _ordinary_bits(record: LayerRecord, weight_bits: int | None) -> int:
    return record.kernel_shape.size * QuantSpec(weight_bits).stored_bits


def _harm_function(
    model: nn.Module, variables: Mapping[str, Any], images: Array
) -> Callable[[LayerRecord, np.ndarray], float]:
    """A function from a layer and its new kernel `[Co, Ci, K]` to the mean divergence."""
    batches = np.array_split(np.asarray(images), -(-len(images) // _BATCH_SIZE))
    state = {name: value for name, value in variables.items() if name != "params"}
    streams = {"dropout": jax.random.key(0)}  # the same units are dropped in both networks
    apply = forward(model, train=True)

    @jax.jit
    def log_probabilities(params: Any, batch: Array) -> Array:
        logits, _ = apply({"params": params, **state}, batch, mutable=list(state), rngs=streams)
        return jax.nn.log_softmax(logits.astype(jnp.float32))

    before = [log_probabilities(variables["params"], batch) for batch in batches]

    def kl(record: LayerRecord, kernel: np.ndarray) -> float:
        new = to_layout(jnp.asarray(kernel), record.kernel_shape)
        params = replaced(variables["params"], (*record.path, "kernel"), new)
        after = (log_probabilities(params, batch) for batch in batches)
        total = sum(float(_divergence(p, q)) for p, q in zip(before, after, strict=True))
        return max(total, 0.0) / len(images)

    return kl


def _divergence(log_p: Array, log_q: Array) -> Array:
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


def replaced(tree: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of the nested mapping with one leaf changed."""
    name, *rest = path
    return {**tree, name: replaced(tree[name], tuple(rest), value) if rest else value}
