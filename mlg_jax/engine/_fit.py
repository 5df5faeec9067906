"""Checks that a file's tensors fit its model, and that its memory is bounded by its size."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.errors

from mlg_jax._errors import printable
from mlg_jax.export import PackedFileError
from mlg_jax.kernels import LayerRecord
from mlg_jax.layers import layer_records

ENTRIES_PER_BYTE = 8  # of an array in the file, at one bit per entry
# Entries allowed in addition, for a kernel or for a layer's output for one image. In float32 they
# take 64 MiB: 64 channels at 512 x 512, that is, for images of 1024 x 1024 after a stride of 2.
FREE_ENTRIES = 2**24


_MISFITS: tuple[type[Exception], ...] = (
    flax.errors.FlaxError,
    KeyError,
    OverflowError,
    TypeError,
)


@contextlib.contextmanager
def naming_misfits(name: str, *more: type[Exception]) -> Iterator[None]:
    """Re-raises errors caused by another model's tensors as `PackedFileError` of the file `name`.

    Args:
        name: the file, for the message.
        more: further error classes that can have no other cause in this context.
    """
    try:
        yield
    except _MISFITS + more as error:
        reason = printable(error)
        raise PackedFileError(
            f"{name}: its tensors must be those of its model; {reason}"
        ) from error


def bounded_records(
    name: str, network: Any, image_shape: Sequence[int] | None, num_bytes: int
) -> tuple[LayerRecord, ...]:
    """The records of a file's network, after checking its memory against the size of the file.

    Without this check, a file of a few bytes could describe generated kernels and resized images of
    any size. Intermediates of a factored convolution take at most `taps` times its output.

    Args:
        name: the file, for messages.
        network: from `network_of`.
        image_shape: `(height, width, channels)` of its images; None takes the network's own.
        num_bytes: size of the file's arrays.

    Raises:
        PackedFileError: the network cannot take such images; or a kernel, or a layer's output for
            one image, has too many entries.
    """
    with naming_misfits(name, ValueError):
        records = layer_records(network, image_shape and (1, *image_shape))
    limit = FREE_ENTRIES + ENTRIES_PER_BYTE * num_bytes
    for record in records:
        if (entries := _largest(record)) > limit:
            raise PackedFileError(
                f"{name}: its layer {record.name} must have a kernel and an output of at most "
                f"{limit:,} entries, as its arrays have {num_bytes:,} bytes; got {entries:,} for "
                f"inputs of {'x'.join(map(str, record.input_shape[1:]))}."
            )
    return records


def _largest(record: LayerRecord) -> int:
    """The larger of the number of entries of the kernel and of the output for one image."""
    if record.shape is None:
        return record.num_params
    steps = zip(record.input_shape[1:-1], record.strides, strict=False)
    positions = math.prod(-(-size // stride) for size, stride in steps)
    return max(record.shape.size, positions * record.shape.out_channels)
