"""Training under a checkpointing policy: measured capacities, memory budgets, overflow."""

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh

from mlg_jax.config import ConfigError, RematConfig
from mlg_jax.layers import random_streams
from mlg_jax.memory import compiled_memory
from mlg_jax.models import with_layers
from mlg_jax.planner import MIB, plan_policy
from mlg_jax.remat import RematSpec, choose_capacities, measure_densities
from mlg_jax.train import LossFn, TrainState, shard_batch

_log = logging.getLogger(__name__)

MakeLoss = Callable[[nn.Module], LossFn]
CALIBRATION_BATCHES = 4
DRIFT = 1.25  # capacities are lowered if they exceed the required ones by more than this factor
_MEASURING = RematSpec("bitmap_units")  # reports the densities of blocks and of units


class AdaptiveRemat:
    """The loss functions of a stage under `config.remat`.

    Args:
        config: the policy.
        model: the stage's network, without a policy.
        make_loss: makes the training loss of a network that has a policy.
        mesh: the devices; each packs its own rows of a batch.
        key: for the random numbers of the forward passes that measure densities.
        target: the GPU to whose memory `auto` fits the policy; None: the devices that are here.
    """

    def __init__(
        self,
        config: RematConfig,
        model: Any,
        make_loss: MakeLoss,
        mesh: Mesh,
        key: jax.Array,
        target: str | None = None,
    ) -> None:
        self._config, self._model, self._make_loss, self._mesh = config, model, make_loss, mesh
        self._target = target
        self._rngs = random_streams(key)
        self._densities = jax.jit(
            functools.partial(measure_densities, with_layers(model, remat=_MEASURING))
        )
        self._capacities: dict[str, float] = {}
        self._preset = config.policy

    def prepare(self, variables: Mapping[str, Any], batches: Iterable[Any]) -> None:
        """Measures densities on the first batches, and chooses a preset that fits the budget."""
        if self._config.policy == "none":
            return
        first = [
            shard_batch(batch, self._mesh)
            for batch in itertools.islice(batches, CALIBRATION_BATCHES)
        ]
        if self._config.capacity is None:
            for batch in first:
                self._raise_capacities(variables, batch)
        if self._config.policy == "auto":
            assert self._config.budget_mib is not None
            measure = functools.partial(self._temporary_bytes, variables, first[0])
            try:
                self._preset, found = plan_policy(
                    measure, budget_bytes=self._config.budget_mib * MIB
                )
            except ValueError as error:
                raise ConfigError(f"config.remat: {error}") from error
            _log.info("remat: %s, %.1f MiB", self._preset, found[self._preset] / MIB)

    @property
    def loss_fn(self) -> LossFn:
        """The loss under the policy."""
        return self._make_loss(with_layers(self._model, remat=self.policy))

    @property
    def policy(self) -> RematSpec:
        """The chosen preset with the current capacities."""
        return self._policy(self._preset)

    @property
    def exact_loss_fn(self) -> LossFn | None:
        """The loss for batches that overflow their bitmaps; None if the policy cannot overflow."""
        policy = self.policy
        if not policy.needs_capacity:
            return None
        return self._make_loss(with_layers(self._model, remat=policy.exact))

    def on_overflow(self, state: TrainState, batch: Any) -> LossFn | None:
        """The loss with capacities for a batch that overflowed; see `mlg_jax.train.Task`."""
        before = dict(self._capacities)
        self._raise_capacities({"params": state.params, **state.model_state}, batch)
        if before == self._capacities:
            return None
        _log.info("remat: capacities raised, recompiling the step")
        return self.loss_fn

    def on_epoch_end(self, state: TrainState, batch: Any) -> LossFn | None:
        """The loss with capacities adjusted to the current densities; None if they still fit.

        A batch that overflows the new capacities is repeated exactly, as always.
        """
        if not self.policy.needs_capacity or self._config.capacity is not None:
            return None
        densities = self._densities(
            {"params": state.params, **state.model_state}, batch["image"], rngs=self._rngs
        )
        chosen = choose_capacities(densities, margin=self._config.margin)
        drifted = {
            name: new
            for name, new in chosen.items()
            if not new <= self._capacities[name] <= DRIFT * new
        }
        if not drifted:
            return None
        _log.info("remat: %d of %d capacities adjusted", len(drifted), len(chosen))
        self._capacities |= drifted
        return self.loss_fn

    def _raise_capacities(self, variables: Mapping[str, Any], batch: Any) -> None:
        densities = self._densities(variables, batch["image"], rngs=self._rngs)
        chosen = choose_capacities(densities, margin=self._config.margin, largest=self._capacities)
        self._capacities |= chosen

    def _policy(self, preset: str) -> RematSpec:
        fixed = self._config.capacity
        capacity = 1.0 if fixed is None else fixed
        # Silent, because the loop detects the NaN, repeats the step exactly and counts it.
        policy = RematSpec(preset, capacity, mesh=self._mesh, on_overflow="silent")
        return policy if fixed is not None else policy.with_capacities(self._capacities)

    def _temporary_bytes(self, variables: Mapping[str, Any], batch: Any, preset: str) -> int:
        loss_fn = self._make_loss(with_layers(self._model, remat=self._policy(preset)))
        state = {k: v for k, v in variables.items() if k != "params"}

        def step(params: Any, state: Any, batch: Any, key: jax.Array) -> Any:
            return loss_fn(params, state, batch, key, True)

        gradient = jax.jit(jax.value_and_grad(step, has_aux=True))
        args = (variables["params"], state, batch, jax.random.key(0))
        memory = compiled_memory(gradient, *args, target=self._target)
        if memory is None:
            raise ConfigError("config.remat.policy: 'auto' needs a backend that reports memory.")
        return memory.temporary_bytes
