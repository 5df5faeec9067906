"""Serves the batches of a split: gathered from device memory, or streamed by Grain."""

import abc
import contextlib
import functools
from collections.abc import Generator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mlg_jax.data._examples import Examples, HostBatch, read_all

Batch = dict[str, jax.Array]  # image: uint8 [b, h, w, c]; label: int32 [b]; mask: bool [b]


def _local_rows(rows: np.ndarray, sharding: NamedSharding | None) -> np.ndarray:
    """This process's equal share of the last axis; all of it in a single-process run."""
    num_processes = jax.process_count() if sharding is not None else 1
    if num_processes == 1:
        return rows
    share = rows.shape[-1] // num_processes
    start = jax.process_index() * share
    return rows[..., start : start + share]


def _place(local: HostBatch, sharding: NamedSharding | None) -> Batch:
    """Puts this process's share of a batch on its devices."""
    if sharding is None:
        return jax.device_put(local)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in local.items()
    }


class Split(abc.ABC):
    """Serves batches of examples chosen by their row numbers."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abc.abstractmethod
    def batches(
        self, rows: np.ndarray, mask: np.ndarray | None = None
    ) -> Generator[Batch, None, None]:
        """One batch per step, from `rows`, int32 [steps, b], and `mask`, bool [steps, b].

        Closing the generator stops its reader threads.
        """


def _gather(images: jax.Array, labels: jax.Array, rows: jax.Array) -> Batch:
    """One batch, gathered on the device."""
    return {"image": images[rows], "label": labels[rows]}


class ResidentSplit(Split):
    """Images kept on every device as uint8; a step transfers only the `4 b` bytes of its indices.

    Args:
        examples: read completely by the constructor.
        num_threads: number of reader threads.
        sharding: sharding of a batch; None uses the default device.
    """

    def __init__(
        self, examples: Examples, *, num_threads: int, sharding: NamedSharding | None
    ) -> None:
        host = read_all(examples, num_threads)
        self._sharding = sharding
        self._images = self._replicated(host["image"])
        self._labels = self._replicated(host["label"])
        out = None if sharding is None else {"image": sharding, "label": sharding}
        self._take = jax.jit(_gather, out_shardings=out)

    def _replicated(self, array: np.ndarray) -> jax.Array:
        """Copies an array to every device of the mesh."""
        if self._sharding is None:
            return jax.device_put(array)
        everywhere = NamedSharding(self._sharding.mesh, PartitionSpec())
        return jax.make_array_from_callback(array.shape, everywhere, lambda index: array[index])

    def __len__(self) -> int:
        return self._labels.shape[0]

    def batches(
        self, rows: np.ndarray, mask: np.ndarray | None = None
    ) -> Generator[Batch, None, None]:
        """See `Split.batches`."""
        for step, chosen in enumerate(rows):
            batch = self._take(self._images, self._labels, chosen)
            if mask is not None:
                local = {"mask": _local_rows(mask[step], self._sharding)}
                batch = batch | _place(local, self._sharding)
            yield batch


class StreamedSplit(Split):
    """Images that are read and decoded while the devices compute.

    Each element of the Grain pipeline is a whole batch, addressed by its step, so its content
    depends neither on the number of threads nor on the step at which the iteration starts.

    Args:
        examples: read again in every epoch.
        num_threads: number of reader threads, and of batches prefetched into host memory.
        sharding: sharding of a batch; None uses the default device. Each process reads only its
            own share.
    """

    def __init__(
        self, examples: Examples, *, num_threads: int, sharding: NamedSharding | None
    ) -> None:
        self._examples = examples
        self._num_threads = num_threads
        self._sharding = sharding

    def __len__(self) -> int:
        return len(self._examples)

    def _host_batches(self, rows: np.ndarray) -> Any:
        """An open Grain iterator over the batches of `rows`."""
        import grain

        options = grain.ReadOptions(
            num_threads=self._num_threads, prefetch_buffer_size=self._num_threads
        )
        batches = grain.MapDataset.source(rows).map(self._examples.read)
        return iter(batches.to_iter_dataset(options))

    def batches(
        self, rows: np.ndarray, mask: np.ndarray | None = None
    ) -> Generator[Batch, None, None]:
        """See `Split.batches`."""
        if not len(rows):
            return
        masks = None if mask is None else _local_rows(mask, self._sharding)
        place = functools.partial(_place, sharding=self._sharding)
        with contextlib.closing(self._host_batches(_local_rows(rows, self._sharding))) as stream:
            for step, batch in enumerate(stream):
                yield place(batch if masks is None else batch | {"mask": masks[step]})
