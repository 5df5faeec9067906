"""Bytes of the storage formats against the sizes of actual NumPy arrays."""

import math

import numpy as np
import pytest

from mlg_jax.memory import STORAGES, crossover_density, storage_bytes, storage_curve

DENSITIES = np.linspace(0.0, 1.0, 33)


def stored(storage, x):
    """The arrays that store x in this format; their `nbytes` are the oracle."""
    flat = x.reshape(-1)
    [index] = np.nonzero(flat)
    values = flat[index]
    if storage == "dense":
        return [x]
    if storage == "bitmap":
        return [np.packbits(flat != 0), values]
    if storage == "coo_packed":
        width = max(x.size - 1, 0).bit_length()
        bits = (index[:, None] >> np.arange(width)) & 1
        return [np.packbits(bits.astype(np.uint8).reshape(-1)), values]
    return [index.astype({"coo_int64": np.int64, "coo_int32": np.int32}[storage]), values]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1,), (2,), (7, 9), (4, 8, 8), (1025,)], ids=str)
@pytest.mark.parametrize("storage", STORAGES)
def test_bytes_are_those_of_the_arrays(storage, shape, dtype):
    generator = np.random.default_rng(1)
    for density in (0.0, 0.3, 1.0):
        x = (1 + generator.random(shape)) * (generator.random(shape) < density)
        x = x.astype(dtype)
        expected = sum(array.nbytes for array in stored(storage, x))
        bits = 8 * x.itemsize
        assert storage_bytes(storage, x.size, np.count_nonzero(x), value_bits=bits) == expected


@pytest.mark.parametrize("value_bits", [4, 8, 32])
@pytest.mark.parametrize("storage", STORAGES)
def test_curve_equals_the_bytes_at_whole_counts(storage, value_bits):
    counts = [int(density * 2**10) for density in DENSITIES]
    expected = [storage_bytes(storage, 2**10, n, value_bits=value_bits) for n in counts]
    curve = storage_curve(storage, 2**10, DENSITIES, value_bits=value_bits)
    np.testing.assert_array_equal(curve, expected)


def test_published_savings():
    """BitTrain's ideal savings for an fp32 tensor: 46.9 % at 50 % zeros, 66.9 % at 70 % zeros."""
    curve = storage_curve("bitmap", 1000, [0.5, 0.3]) / storage_bytes("dense", 1000, 0)
    np.testing.assert_allclose(1 - curve, [0.469, 0.669], atol=5e-4)


@pytest.mark.parametrize(
    "storage, other, density",
    [
        ("bitmap", "dense", 31 / 32),
        ("coo_int32", "dense", 1 / 2),
        ("coo_int64", "dense", 1 / 3),
        ("coo_packed", "dense", 32 / 42),
        ("bitmap", "coo_int32", 1 / 32),
        ("bitmap", "coo_int64", 1 / 64),
        ("bitmap", "coo_packed", 1 / 10),
        ("coo_int32", "coo_int64", 0.0),
    ],
)
def test_crossover(storage, other, density):
    for pair in ((storage, other), (other, storage)):
        assert math.isclose(crossover_density(*pair, 2**10), density, abs_tol=1e-12)
    apart = DENSITIES[np.abs(DENSITIES - density) > 1e-9]
    dearer = storage_curve(storage, 2**10, apart) > storage_curve(other, 2**10, apart)
    is_above = apart > density
    assert np.all(dearer == is_above) or np.all(dearer != is_above)


def test_no_crossover():
    assert crossover_density("dense", "dense", 8) is None
    # with 1-bit values, the bitmap without any values is as large as the tensor
    assert crossover_density("bitmap", "dense", 8, value_bits=1) == 0.0
    assert crossover_density("coo_packed", "coo_int32", 2**32) is None


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(ValueError, match=r"`storage` must be one of \['bitmap', 'coo_int32', 'co"):
        storage_bytes("csr", 8, 4)
    with pytest.raises(ValueError, match=r"`num_nonzeros` must be an integer in \[0, 8\]; got 9"):
        storage_bytes("dense", 8, 9)
    with pytest.raises(ValueError, match=r"`value_bits` must be an integer in \[1, 64\]; got 0"):
        storage_bytes("dense", 8, 4, value_bits=0)
    with pytest.raises(ValueError, match=r"`densities` must be a number in \[0.0, 1.0\]; got 1.5"):
        storage_curve("dense", 8, [0.5, 1.5])
    with pytest.raises(ValueError, match="`num_elements` must be an integer >= 1; got 0"):
        crossover_density("dense", "bitmap", 0)
