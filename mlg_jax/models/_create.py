"""Creating models by name."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from mlg_jax.kernels import matches_path
from mlg_jax.layers import layer_records
from mlg_jax.models._spec import Generation, ImplementationChoice, ModelSpec, Remat


def create_model(
    name: str,
    *,
    num_classes: int,
    stem: str = "cifar",
    width: float = 1.0,
    generation: Generation = None,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    implementation: ImplementationChoice = "auto",
    remat: Remat = None,
    dtype: Any = None,
) -> nn.Module:
    """Creates a model.

    Args:
        name: one of `MODELS` (resnet10, resnet18, resnet34, resnet50, resnet101, resnet152, vgg16,
            alexnet, squeezenet (1.1), mobilenet_v2, cifar_cnn).
        num_classes: number of logits, at least 1.
        stem: `cifar` (32 x 32 images; a residual network's classifier then has no bias) or
            `imagenet` (224 x 224).
        width: factor on every channel count, > 0; rounded, at least one channel (mobilenet_v2:
            to multiples of 8).
        generation: how convolution kernels are generated: None (ordinary kernels), one spec, or
            `{path pattern: spec or None}`, where the first matching pattern (`fnmatch`, e.g.
            `"stage4_*/conv?"`) decides and layers without a match stay ordinary.
        weight_bits: width of dense layers and of kernels that cannot be generated, 1 to 16; None
            does not quantise them.
        activation_bits: width of the inputs of convolutions and dense layers, 1 to 16; None does
            not quantise them.
        implementation: how a generated kernel is applied; `auto` chooses.
        remat: policy for the residuals of the backward pass: the name of a preset
            (`mlg_jax.remat.PRESETS`), a `mlg_jax.remat.RematSpec` with its capacities, or a
            `mlg_jax.remat.ResidualPolicy` for every block; None leaves the choice to JAX.
        dtype: of the computation, e.g. `jnp.bfloat16`; None is float32. Parameters are float32,
            or float64 if `dtype` is float64 (which needs `jax_enable_x64`).

    Returns:
        A Linen module: `model.init(key, x)`, `model.apply(variables, x, train=False)` with `x`
        `[N, H, W, C]`. Its collections are `params` and, with norms or quantised activations,
        `batch_stats`. Random streams in training: `quantize` with partial quantisation, `dropout`
        in vgg16 (stem `imagenet`), alexnet, squeezenet and mobilenet_v2.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, or a pattern
            matches no layer.

    Examples:
        >>> spec = GenerationSpec.from_bits(2, 44, 3, 6, 3)
        >>> model = create_model("resnet18", num_classes=10, generation=spec, weight_bits=8)

    Reference: https://arxiv.org/abs/1512.03385, https://arxiv.org/abs/2108.11430.
    """
    spec = ModelSpec(
        name=name,
        num_classes=num_classes,
        stem=stem,
        width=width,
        generation=generation,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        implementation=implementation,
        remat=remat,
        dtype=dtype,
    )
    model = spec.create()
    if isinstance(generation, Mapping):
        _check_patterns(model, generation)
    return model


def _check_patterns(model: nn.Module, generation: Mapping[str, Any]) -> None:
    kernels = {r.name: r.kernel for r in layer_records(model) if r.kind == "conv" and r.kernel}
    for pattern, spec in generation.items():
        matched = [path for path in kernels if matches_path(pattern, path)]
        if not matched:
            raise ValueError(
                "`generation` must have patterns that match a convolution of "
                f"{list(kernels)}; got {pattern!r}."
            )
        if spec is not None and all(spec.bind(kernels[path].layer) is None for path in matched):
            raise ValueError(
                f"`generation[{pattern!r}]` must apply to a layer that its pattern matches, "
                f"{matched}; got {spec!r}, which applies to none of these shapes."
            )
