"""Batches of any size, cut and padded to the few sizes that a program is compiled for."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mlg_jax._checks import check_integer

BATCH_SIZES = (1, 8, 32, 128)


class Chunk(NamedTuple):
    """Rows `start` to `stop` of the images, filled up to `size` rows."""

    start: int
    stop: int
    size: int


def checked_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes in ascending order.

    Raises:
        TypeError, ValueError: no sizes, or one that is no positive integer.
    """
    if not isinstance(batch_sizes, Sequence) or not batch_sizes:
        raise ValueError(f"`batch_sizes` must be integers, at least one; got {batch_sizes!r}.")
    for size in batch_sizes:
        check_integer("batch_sizes", size, 1)
    return tuple(sorted({int(size) for size in batch_sizes}))


def chunks(num_images: int, batch_sizes: tuple[int, ...]) -> Iterator[Chunk]:
    """As many of the largest size as there are, the rest in the smallest that holds it."""
    start, largest = 0, batch_sizes[-1]
    while start < num_images:
        rest = num_images - start
        size = next((size for size in batch_sizes if size >= rest), largest)
        yield Chunk(start, start + min(size, rest), size)
        start += size


def padded(images: np.ndarray | jax.Array, chunk: Chunk) -> np.ndarray | jax.Array:
    """The chunk's rows, then zeros. Images that fill it as they are stay where they are."""
    if len(images) == chunk.size:
        return images
    # On the host: slicing and padding a device array would compile a program for every length.
    rows = np.asarray(images)[chunk.start : chunk.stop]
    missing = chunk.size - len(rows)
    return np.pad(rows, ((0, missing), *((0, 0),) * (rows.ndim - 1))) if missing else rows
