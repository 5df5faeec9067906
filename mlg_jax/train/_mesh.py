"""One mesh over all devices: batches are sharded over it, the state is replicated."""

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
    """Joins this process to a run over several; call it before anything touches a device.

    On CPU the processes talk through gloo; on CUDA through NCCL.

    Args:
        coordinator_address: "host:port" of process 0.
        num_processes: how many there are.
        process_id: this one's number, from 0.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=coordinator_address,
        num_processes=num_processes,
        process_id=process_id,
    )


def wait_for_all(name: str) -> None:
    """Returns once all processes have called this with `name`; at once where there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_agree(answer: bool) -> bool:
    """Whether all processes give a true answer; each of them must ask at the same point."""
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
    """A mesh with the single axis "data" over `devices`, by default all of all processes."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that puts a whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The sharding that splits the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of `tree` on every device; the copy may be donated, the original lives on.

    Where there are several processes, each must give the same values.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, replicated(mesh), may_alias=False)
    return jax.tree.map(lambda leaf: _replicate_globally(leaf, replicated(mesh)), tree)


def shard_batch(batch: Any, mesh: Mesh, *, num_parts: int = 1) -> Any:
    """Puts a batch on the devices, rows split over them.

    Args:
        batch: a pytree of arrays `[n, ...]`: this process's own rows. The global batch is the
            rows of all processes, in the order of the processes. Arrays that already span several
            processes pass as they are.
        mesh: as from `make_mesh`.
        num_parts: micro-batches a step; each must split evenly over the devices.

    Returns:
        The same pytree of global arrays.

    Raises:
        ValueError: rows that differ between leaves, or do not divide evenly.
    """
    rows = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(batch)}
    if len(rows) != 1 or 0 in rows:
        raise ValueError(
            f"`batch` must be arrays with the same number of rows; got {sorted(rows)}."
        )
    num_local = len(mesh.local_devices)
    if (num_rows := rows.pop()) % (num_local * num_parts):
        raise ValueError(
            f"`batch` must have a multiple of {num_local} devices x {num_parts} micro-batches "
            f"rows in each process; got {num_rows}."
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
