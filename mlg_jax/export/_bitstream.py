"""Packs codes of 1 to 16 bits into bytes on the host; unpacks them there or in traced programs."""

import jax.numpy as jnp
import numpy as np

from mlg_jax._types import Array


def num_bytes(size: int, bits: int) -> int:
    """Bytes of `size` packed codes, `ceil(size bits / 8)`."""
    return -(-size * bits // 8)


def join_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Packs codes into bytes.

    Bit `j` of code `i` is stored in byte `k // 8` as bit `k % 8` (0 is the least significant),
    where `k = i bits + j`. Unused bits of the last byte are zero.

    Args:
        codes: integers in `[0, 2**bits)`, any shape, taken in C order.
        bits: 1 to 16.

    Returns:
        uint8, `[ceil(size bits / 8)]`.
    """
    pairs = np.ascontiguousarray(codes, "<u2").reshape(-1, 1).view(np.uint8)
    return np.packbits(np.unpackbits(pairs, axis=1, bitorder="little")[:, :bits], bitorder="little")


def split_codes(data: np.ndarray, bits: int, size: int) -> np.ndarray:
    """The inverse of `join_codes`: `[size]`, uint8 for up to 8 bits, otherwise uint16."""
    rows = np.unpackbits(data, count=size * bits, bitorder="little").reshape(size, bits)
    columns = np.packbits(rows, axis=1, bitorder="little")
    return columns.reshape(-1) if bits <= 8 else columns.view("<u2").reshape(-1).astype(np.uint16)


def split_codes_traced(data: Array, bits: int, size: int) -> Array:
    """`split_codes` in a traced program.

    Works bit by bit. Gathering each code from the two or three bytes that hold it would run twice
    as fast, but take three times as long to compile.
    """
    storage = jnp.uint8 if bits <= 8 else jnp.uint16
    every_bit = (data[:, None] >> jnp.arange(8, dtype=jnp.uint8)) & jnp.uint8(1)
    rows = every_bit.reshape(-1)[: size * bits].reshape(size, bits).astype(storage)
    return jnp.sum(rows << jnp.arange(bits, dtype=storage), axis=1, dtype=storage)
