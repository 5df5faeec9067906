"""The bitmap format in NumPy, entry by entry, and arrays with difficult bit patterns."""

import numpy as np

SPECIAL = {2: [0x0001, 0x8000, 0x7C00, 0xFC01, 0x7F80, 0x7F81, 0xFFFF]}
SPECIAL[4] = [0x1, 0x80000000, 0x7F800000, 0x7F800001, 0xFFFFFFFF, 0x807FFFFF]
SPECIAL[8] = [0x1, 1 << 63, 0x7FF0000000000001, (1 << 64) - 1]


def bits_of(x):
    """The bit patterns of an array, flattened."""
    x = np.asarray(x)
    return np.ascontiguousarray(x).reshape(-1).view(f"u{x.dtype.itemsize}")


def random_array(shape, dtype, density, seed=0):
    """Random bit patterns, 20 % of them special; zeros come in runs of various lengths."""
    rng = np.random.default_rng(seed)
    size, width = int(np.prod(shape)), np.dtype(dtype).itemsize
    bits = rng.integers(1, 2 ** (8 * width) - 1, size, dtype=f"u{width}", endpoint=True)
    is_special = rng.random(size) < 0.2
    bits[is_special] = rng.choice(np.array(SPECIAL[width], f"u{width}"), is_special.sum())
    runs = np.repeat(rng.random(size + 1), rng.integers(1, 40, size + 1))[:size]
    bits[runs >= density] = 0
    return bits.view(dtype).reshape(shape)


def pack(x, capacity):
    """Returns `(words, values, offsets)` of an array whose non-zeros fit into the capacity."""
    bits = bits_of(x)
    num_blocks = (len(bits) + 1023) // 1024
    words = [0] * (32 * num_blocks)
    offsets = [0] * (num_blocks + 1)
    values = []
    for entry, pattern in enumerate(bits):
        if pattern:
            words[entry // 32] |= 1 << (entry % 32)
            values.append(pattern)
        offsets[entry // 1024 + 1] = len(values)
    values += [0] * (capacity + 32 - len(values))
    return np.array(words, np.uint32), np.array(values, bits.dtype), np.array(offsets, np.int32)
