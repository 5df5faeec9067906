"""Packed models for tests, built without any compilation."""

import numpy as np

from mlg_jax.export import PackedModel, PackedTensor
from mlg_jax.export._archive import PLAIN, _header_of, to_bytes
from mlg_jax.export._bitstream import join_codes
from mlg_jax.export._tensor import num_constants, pack_plain
from mlg_jax.quant import MIN_BITS

SCHEMES = sorted(set(MIN_BITS) - {"tanh_norm"})
CASES = [(s, b) for s in SCHEMES for b in range(MIN_BITS[s], 17)]


def coded(path, shape, scheme, bits, seed=0):
    """An array of random codes with random constants."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, shape)
    constants = np.sort(rng.uniform(0.1, 1, num_constants(scheme))).astype(np.float32)
    return PackedTensor(join_codes(codes, bits), constants, path, shape, scheme, bits)


def example():
    """A model with one array per kind of encoding."""
    rng = np.random.default_rng(1)
    return PackedModel(
        (
            pack_plain(("batch_stats", "norm", "mean"), rng.normal(size=5).astype(np.float32)),
            pack_plain(("batch_stats", "norm", "range", "is_set"), np.array(True)),
            pack_plain(("batch_stats", "norm", "range", "maximum"), np.array(2.5, np.float32)),
            coded(("params", "conv", "basis"), (3, 2, 9), "dorefa_sym", 3),
            coded(("params", "conv", "coeff_in"), (3, 4, 2), "qnn", 6),
            coded(("params", "conv", "coeff_out"), (7, 3), "dorefa_pos", 11),
            coded(("params", "dense", "kernel"), (4, 3), "ewgs", 8),
            coded(("params", "head", "kernel"), (4, 3), "dorefa", 1),
        ),
        {"model": {"name": "none"}, "class_names": ["ä", "b"], "metrics": {"accuracy": 0.1}},
    )


def skewed():
    """A model with one array per kind of encoding whose codes are mostly zero."""
    rng = np.random.default_rng(2)
    tensors = []
    for scheme, bits in CASES:
        codes = np.where(rng.random(4000) < 0.9, 0, rng.integers(0, 2**bits, 4000))
        constants = np.sort(rng.uniform(0.1, 1, num_constants(scheme))).astype(np.float32)
        path = ("params", f"{scheme}_{bits}", "kernel")
        tensors.append(
            PackedTensor(join_codes(codes, bits), constants, path, (40, 100), scheme, bits)
        )
    return PackedModel((*example().tensors, *tensors), example().manifest)


def container_of(blob, version=PLAIN):
    """A file with the given blob and a correct length and checksum."""
    return _header_of(blob, version) + blob


def blob_of(content):
    """The blob of a file, without the container."""
    return content[8 + int.from_bytes(content[:8], "little") :]


def same(one, other):
    """Whether two models are equal bit for bit."""
    return to_bytes(one) == to_bytes(other)
