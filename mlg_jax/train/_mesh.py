"""A one-axis device mesh, and communication between processes; states are replicated over it."""

import secrets
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def initialize_distributed(
    *, coordinator_address: str, num_processes: int, process_id: int
) -> None:
    """Joins this process to a multi-process run; call it before any device is used.

    Processes communicate through Gloo on CPU and through NCCL on CUDA.

    Args:
        coordinator_address: "host:port" of process 0.
        num_processes: number of processes of the run.
        process_id: index of this process, from 0.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=coordinator_address,
        num_processes=num_processes,
        process_id=process_id,
    )


def wait_for_all(name: str) -> None:
    """A barrier: returns once all processes have called it with the same `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_agree(answer: bool) -> bool:
    """Whether `answer` is true on all processes; a collective that every process must call."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.process_allgather(np.array(answer)).all())


def shared_token() -> str:
    """Random hexadecimal digits, the same on all processes."""
    token = np.uint32(secrets.randbits(32))
    if jax.process_count() > 1:
        token = multihost_utils.broadcast_one_to_all(token)
    return f"{int(token):08x}"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the single axis "data" over `devices`; None: all devices of all processes."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that places a full copy of an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The sharding that splits the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies `tree` to every device; donating the copy leaves the original intact.

    In a multi-process run, every process must pass the same values.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, replicated(mesh), may_alias=False)
    return jax.tree.map(lambda leaf: _replicate_globally(leaf, replicated(mesh)), tree)


def shard_batch(batch: Any, mesh: Mesh, *, num_parts: int = 1) -> Any:
    """Shards a batch over the devices along its first axis.

    Args:
        batch: a pytree of arrays `[n, ...]`, the rows of this process. The global batch
            concatenates the rows of all processes in their order. Arrays that already span several
            processes are returned unchanged.
        mesh: as returned by `make_mesh`.
        num_parts: micro-batches per step; each must divide evenly over the devices.

    Returns:
        The same pytree with global arrays.

    Raises:
        ValueError: the number of rows differs between leaves, or does not divide evenly.
    """
    rows = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(batch)}
    if len(rows) != 1 or 0 in rows:
        raise ValueError(
            f"`batch` must be arrays with the same number of rows; got {sorted(rows)}."
        )
    num_local = len(mesh.local_devices)
    if (num_rows := rows.pop()) % (num_local * num_parts):
        raise ValueError(
            f"`batch` must have a multiple of {num_local * num_parts} rows in each process "
            f"({num_local} devices x {num_parts} micro-batches); got {num_rows}."
        )
    return jax.tree.map(lambda leaf: _shard(leaf, sharded(mesh)), batch)


def _shard(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))


def _replicate_globally(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = _replicate_globally(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    return jax.make_array_from_process_local_data(sharding, np.array(leaf), leaf.shape)
