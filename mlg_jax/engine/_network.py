"""The network of a packed file: the model's spec, its weights no longer quantised."""

import dataclasses
from typing import Any

from flax import linen as nn

from mlg_jax._checks import check_instance
from mlg_jax.generation import GenerationSpec
from mlg_jax.models import ImplementationChoice, ModelSpec
from mlg_jax.quant import QuantSpec
from mlg_jax.remat import NO_REMAT


def spec_of(model: nn.Module) -> ModelSpec:
    """The spec that makes `model`, without what is of use in training only.

    Raises:
        TypeError: no Linen module.
        ValueError: the model was not made by `create_model`, or was changed since.
    """
    check_instance("model", model, nn.Module)
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        raise ValueError(f"`model` must be made by `create_model`; got a {type(model).__name__}.")
    spec = dataclasses.replace(spec, remat=None)
    if model.clone(remat=NO_REMAT, spec=spec) != spec.create():
        raise ValueError(
            "`model` must be as `create_model` made it; got one whose fields were changed since."
        )
    return spec


def decoded_network(
    spec: ModelSpec, *, implementation: ImplementationChoice, is_folded: bool
) -> nn.Module:
    """The network for decoded factors.

    They are on their grids already, and rounding them again would move them: the grid of a tanh
    scheme depends on the numbers it is given.

    Args:
        spec: of the model that was saved.
        implementation: as `create_model` takes it.
        is_folded: leaves the norms out; convolutions then have biases.
    """
    decoded = dataclasses.replace(
        spec,
        weight_bits=None,
        generation=_unquantized(spec.generation),
        implementation=implementation,
    )
    network = decoded.create()
    return network.clone(norm=None) if is_folded else network


def norm_epsilon(spec: ModelSpec) -> float:
    """What the model's norms add to the variance; 0 where it has none."""
    norm: Any = getattr(spec.create(), "norm", None)
    return 0.0 if norm is None else norm().epsilon


def _unquantized(generation: Any) -> Any:
    if isinstance(generation, tuple):
        return tuple((pattern, _unquantized(spec)) for pattern, spec in generation)
    if generation is None:
        return None
    assert isinstance(generation, GenerationSpec)
    exact = QuantSpec()
    return dataclasses.replace(generation, basis=exact, coeff_in=exact, coeff_out=exact)
