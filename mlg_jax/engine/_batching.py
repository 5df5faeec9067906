"""Splits and pads batches of any size to the few sizes that programs are compiled for."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mlg_jax._checks import check_integer

BATCH_SIZES = (1, 8, 32, 128)


class Chunk(NamedTuple):
    """Rows `start` to `stop` of the images, padded to `size` rows."""

    start: int
    stop: int
    size: int


def checked_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """The distinct sizes in ascending order.

    Raises:
        TypeError, ValueError: `batch_sizes` is empty, or a size is not a positive integer.
    """
    if not isinstance(batch_sizes, Sequence) or not batch_sizes:
        raise ValueError(
            f"`batch_sizes` must be a non-empty sequence of integers; got {batch_sizes!r}."
        )
    for size in batch_sizes:
        check_integer("batch_sizes", size, 1)
    return tuple(sorted({int(size) for size in batch_sizes}))


def chunks(num_images: int, batch_sizes: tuple[int, ...]) -> Iterator[Chunk]:
    """Full chunks of the largest size, then one chunk of the smallest size that fits the rest."""
    start, largest = 0, batch_sizes[-1]
    while start < num_images:
        rest = num_images - start
        size = next((size for size in batch_sizes if size >= rest), largest)
        yield Chunk(start, start + min(size, rest), size)
        start += size


def padded(images: np.ndarray | jax.Array, chunk: Chunk) -> np.ndarray | jax.Array:
    """The chunk's rows, padded with zeros; `images` itself if its length is the chunk's size."""
    if len(images) == chunk.size:
        return images
    # On the host: slicing and padding a device array would compile one program per length.
    rows = np.asarray(images)[chunk.start : chunk.stop]
    missing = chunk.size - len(rows)
    return np.pad(rows, ((0, missing), *((0, 0),) * (rows.ndim - 1))) if missing else rows
