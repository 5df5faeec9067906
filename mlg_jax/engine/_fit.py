"""Whether a file fits what it says: tensors the model, memory the bytes of the file."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.errors

from mlg_jax._errors import printable
from mlg_jax.export import PackedFileError
from mlg_jax.kernels import LayerRecord
from mlg_jax.layers import layer_records

ENTRIES_PER_BYTE = 8  # of an array in the file, at one bit an entry
# Entries of one kernel or of one layer's output for one image beyond that, 64 MiB: 64 channels at
# 512 x 512, or at 1024 x 1024 after a stride of 2.
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
        name: of the file.
        more: classes of errors that have no other cause here.
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
    """The records of a file's network, which takes memory in proportion to the file.

    Kernels are generated and images are resized: a file of a few bytes can describe any amount of
    either. What lies between the factors of a kernel takes at most `taps` times its output.

    Args:
        name: of the file, for messages.
        network: from `decoded_network`.
        image_shape: `(height, width, channels)` of what it is called with; None takes its own.
        num_bytes: of the file's arrays.

    Raises:
        PackedFileError: no network for such images, or a kernel, or a layer's output for one
            image, has too many entries.
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
    """Entries of the kernel, or of the output for one image."""
    if record.shape is None:
        return record.num_params
    steps = zip(record.input_shape[1:-1], record.strides, strict=False)
    positions = math.prod(-(-size // stride) for size, stride in steps)
    return max(record.shape.size, positions * record.shape.out_channels)
