"""Memory of training: each network under its policy, and without one for comparison."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mlg_jax.config import ConfigError, ProfileConfig, RematConfig
from mlg_jax.experiment._remat import AdaptiveRemat
from mlg_jax.experiment._stage import Stage
from mlg_jax.layers import random_streams
from mlg_jax.memory import (
    BatchMemory,
    DensityRow,
    MemoryReport,
    init_densities,
    memory_report,
    memory_sweep,
    summarize_densities,
    update_densities,
)
from mlg_jax.models import with_layers
from mlg_jax.remat import RematSpec, measure_densities
from mlg_jax.train import (
    LossFn,
    merge_params,
    replicate,
    shard_batch,
    split_params,
)

PLAIN = "none"  # the policy that others are compared with
BATCH_SIZES = (1, 8, 32)  # of the sweep, in addition to the configured one

# Policies used only because their segments, blocks or also units, report densities.
_BLOCKS, _PIECES = RematSpec("bitmap_blocks"), RematSpec("bitmap_units")
_log = logging.getLogger("mlg_jax.experiment")


@dataclasses.dataclass(frozen=True)
class PolicyProfile:
    """One network under one policy."""

    policy: RematSpec  # with the initial capacities of training
    batch_size: int  # of one gradient: of a micro-batch under accumulation
    report: MemoryReport
    sweep: tuple[BatchMemory, ...]


@dataclasses.dataclass(frozen=True)
class DensityProfile:
    """Density (share of non-zero entries) of the inputs of a network's segments, over batches."""

    num_batches: int
    kinds: Mapping[str, str]  # of each layer: "block" or "unit"
    by_layer: tuple[DensityRow, ...]  # empty if the model reports no densities
    by_kind: tuple[DensityRow, ...]


@dataclasses.dataclass(frozen=True)
class NetworkProfile:
    """One network: its memory by policy, "none" first, and its densities."""

    source: str
    policies: Mapping[str, PolicyProfile]
    densities: DensityProfile


def profile_networks(
    networks: Mapping[str, Stage], remat: RematConfig, profile: ProfileConfig, mesh: Mesh
) -> dict[str, NetworkProfile]:
    """Measures every network under `remat` and under "none".

    Args:
        networks: the stages, by name.
        remat: the policy; it is calibrated as in training.
        profile: the GPU to compile for, and over how many batches densities are measured.
        mesh: the devices that share a batch.

    Raises:
        ConfigError: the run has several processes, several devices and a target, or no policy meets
            the budget.
        ImportError: there is no compiler for the target.
    """
    if jax.process_count() > 1:
        raise ConfigError(f"--mode=profile must run in one process; got {jax.process_count()}.")
    if profile.target is not None and mesh.size > 1:
        raise ConfigError(
            "config.profile.target: a profile for a target must run on one device; "
            f"got {mesh.size}."
        )
    remats = {PLAIN: RematConfig(), remat.policy: remat}
    found: dict[str, dict[str, PolicyProfile]] = {name: {} for name in networks}
    # "none" last: an allocator's peak cannot be reset, so only calls that raise it are measured.
    for label in reversed(remats):
        for name, network in networks.items():
            _log.info("profile: %s under %s", name, label)
            found[name][label] = _measured(network, remats[label], mesh, profile.target)
    return {
        name: NetworkProfile(
            source=network.source,
            policies={label: found[name][label] for label in remats},
            densities=_densities(network, mesh, profile.num_batches),
        )
        for name, network in networks.items()
    }


def _measured(network: Stage, remat: RematConfig, mesh: Mesh, target: str | None) -> PolicyProfile:
    training = AdaptiveRemat(remat, network.model, network.make_loss, mesh, network.key, target)
    with contextlib.closing(network.batches.train(0, 0)) as batches:
        training.prepare(network.variables, batches)
    loss = _loss_of_trained(training.loss_fn)
    args = _arguments(network, mesh)
    batch_size = args[-1]["image"].shape[0]
    return PolicyProfile(
        policy=training.policy,
        batch_size=batch_size,
        report=memory_report(loss, *args, argnums=0, has_aux=True, target=target),
        sweep=memory_sweep(
            loss,
            functools.partial(_shapes, args),
            _batch_sizes(batch_size, mesh.size),
            argnums=0,
            has_aux=True,
            target=target,
        ),
    )


def _loss_of_trained(loss_fn: LossFn) -> Callable[..., Any]:
    """The loss as a function whose first argument are the trainable parameters only."""

    def loss(trained: Any, frozen: Any, state: Any, key: jax.Array, batch: Any) -> Any:
        return loss_fn(merge_params(trained, frozen), state, batch, key, True)

    return loss


def _arguments(network: Stage, mesh: Mesh) -> tuple[Any, ...]:
    """`(trained, frozen, state, key, batch)`, on the devices."""
    with contextlib.closing(network.batches.train(0, 0)) as batches:
        batch = next(batches)
    num_rows = batch["image"].shape[0] // network.config.train.accumulation_steps
    batch = jax.tree.map(lambda leaf: leaf[:num_rows], batch)
    state = {k: v for k, v in network.variables.items() if k != "params"}
    trained, frozen = split_params(network.variables["params"], network.is_trainable)
    fixed = replicate((trained, frozen, state, network.key), mesh)
    return (*fixed, shard_batch(batch, mesh))


def _shapes(args: tuple[Any, ...], batch_size: int) -> tuple[Any, ...]:
    """The shapes of `args` for another batch size."""

    def shape_of(leaf: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

    *fixed, batch = args
    fixed = jax.tree.map(lambda leaf: shape_of(leaf, leaf.shape), fixed)
    batch = jax.tree.map(lambda leaf: shape_of(leaf, (batch_size, *leaf.shape[1:])), batch)
    return (*fixed, batch)


def _batch_sizes(own: int, num_devices: int) -> list[int]:
    """Ascending sizes, each rounded up to a multiple of the number of devices."""
    return sorted({-(-size // num_devices) * num_devices for size in (*BATCH_SIZES, own)})


def _densities(network: Stage, mesh: Mesh, num_batches: int | None) -> DensityProfile:
    """Measures densities over the first batches, by default an epoch."""
    steps = network.dataset.steps_per_epoch
    num_batches = steps if num_batches is None else min(num_batches, steps)
    variables = replicate(dict(network.variables), mesh)
    stats = None
    with contextlib.closing(network.batches.train(0, 0)) as batches:
        for index, batch in zip(range(num_batches), batches, strict=False):
            image = shard_batch(batch["image"], mesh)
            if stats is None:
                kinds = _kinds(network, variables, image)
                if not kinds:
                    return DensityProfile(0, {}, (), ())
                stats = init_densities(kinds)
                update = jax.jit(functools.partial(_updated, network.model))
            stats = update(stats, variables, image, jax.random.fold_in(network.key, index))
    assert stats is not None  # an epoch has a batch
    return DensityProfile(
        num_batches=int(stats.count),
        kinds=kinds,
        by_layer=summarize_densities(stats),
        by_kind=summarize_densities(stats, kinds),
    )


def _updated(model: Any, stats: Any, variables: Any, image: jax.Array, key: jax.Array) -> Any:
    model = with_layers(model, remat=_PIECES)
    return update_densities(
        stats, measure_densities(model, variables, image, rngs=random_streams(key))
    )


def _kinds(network: Stage, variables: Any, image: jax.Array) -> dict[str, str]:
    """The segments that report densities, by name: "block" or "unit"."""

    def names(policy: RematSpec) -> list[str]:
        measure = functools.partial(measure_densities, with_layers(network.model, remat=policy))
        return list(jax.eval_shape(measure, variables, image, rngs=random_streams(network.key)))

    blocks = set(names(_BLOCKS))
    return {name: "block" if name in blocks else "unit" for name in names(_PIECES)}


def largest_activation(networks: Mapping[str, NetworkProfile]) -> tuple[int, int]:
    """Number of entries of the largest float activation saved under "none", and bits per entry."""
    rows = [row for n in networks.values() for row in n.policies[PLAIN].report.residuals]
    activations = [row for row in rows if row.kind == "activation" and "float" in row.dtype]
    largest = max(activations, key=lambda row: row.num_bytes)
    bits = int(jnp.finfo(largest.dtype).bits)
    return largest.num_bytes * 8 // bits, bits
