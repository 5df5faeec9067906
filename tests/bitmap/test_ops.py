"""Packing is exact, follows the format, and reports overflows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlg_jax.bitmap import pack, unpack
from mlg_jax.bitmap._ops import (
    _compact_by_loop,
    _compact_by_scatter,
    _slots,
    words_and_offsets,
)
from mlg_jax.bitmap._reference import pack_reference, unpack_reference
from tests.bitmap import _oracle

CASES = [
    *((shape, "float32") for shape in [(), (0, 3), (32,), (3, 1024), (33, 70), (2, 5, 5, 64)]),
    *((shape, dtype) for shape in [(3, 1024), (33, 70)] for dtype in ("bfloat16", "float16")),
]
reference_of = jax.jit(pack_reference, static_argnums=1)
BUFFERS = ("words", "values", "offsets")


def equal(a, b):
    """Whether two arrays have the same type, shape and bits."""
    return (
        a.dtype == b.dtype and a.shape == b.shape and np.array_equal(*map(_oracle.bits_of, (a, b)))
    )


@pytest.mark.parametrize("shape, dtype", CASES, ids=str)
@settings(max_examples=6)
@given(density=st.sampled_from([0.0, 0.03, 0.5, 0.97, 1.0]), seed=st.integers(0, 2**20))
def test_packing_is_exact_and_follows_the_format(shape, dtype, density, seed):
    dtype = jnp.dtype(dtype)
    x = _oracle.random_array(shape, dtype, density, seed)
    bitmap = pack(jnp.asarray(x))
    reference = reference_of(jnp.asarray(x), x.size)
    for name, expected in zip(BUFFERS, _oracle.pack(x, x.size), strict=True):
        for packed in (bitmap, reference):
            buffer = getattr(packed, name)
            assert np.array_equal(_oracle.bits_of(buffer), _oracle.bits_of(expected)), name
    assert bitmap.values.dtype == reference.values.dtype == dtype
    assert equal(unpack(bitmap), x) and equal(jax.jit(unpack_reference)(bitmap), x)
    assert int(bitmap.count) == np.count_nonzero(_oracle.bits_of(x)) and not bitmap.overflowed


def test_float64(x64):
    x = _oracle.random_array((50, 70), np.float64, 0.5)
    bitmap = pack(jnp.asarray(x), capacity=0.75)
    assert bitmap.values.dtype == np.float64 and bitmap.offsets.dtype == np.int32
    assert not bitmap.overflowed and equal(unpack(bitmap), x)


def test_random_arrays_contain_difficult_bit_patterns():
    x = _oracle.random_array((3, 1024), np.float32, 0.5)
    assert np.isnan(x).any() and np.isinf(x).any() and (np.signbit(x) & (x == 0)).any()
    assert ((x != 0) & (np.abs(x) < np.finfo(np.float32).tiny)).any()


@pytest.mark.parametrize("count", [1, 1499, 1500, 1501, 1540, 3000])
def test_overflow_is_exact_and_loses_only_the_values_that_do_not_fit(count):
    x = np.zeros(3000, np.float32)
    places = np.sort(np.random.default_rng(count).choice(3000, count, replace=False))
    x[places] = np.arange(1, count + 1)
    bitmap = pack(jnp.asarray(x), capacity=0.5)
    assert bitmap.capacity == 1500 and int(bitmap.count) == count
    assert bool(bitmap.overflowed) == (count > 1500)
    kept = places[:1500]
    unpacked = np.asarray(unpack(bitmap))
    assert np.array_equal(unpacked[kept], x[kept])
    assert np.array_equal(unpacked[x == 0], x[x == 0])
    slots = _slots(bitmap.words, bitmap.offsets, bitmap.capacity)[1]
    assert 0 <= slots.min() and slots.max() < len(bitmap.values)
    reference = reference_of(jnp.asarray(x), 1500)
    assert np.array_equal(bitmap.words, reference.words)
    assert np.array_equal(bitmap.offsets, reference.offsets)
    assert np.array_equal(bitmap.values[:1500], reference.values[:1500])


@pytest.mark.parametrize("size, capacity, num_values", [(10, 0.3, 3), (10, 0.31, 4), (7, 1e-9, 1)])
def test_capacity_is_a_fraction_rounded_up(size, capacity, num_values):
    assert pack(jnp.zeros(size), capacity=capacity).capacity == num_values


@pytest.mark.parametrize("shape", [(2, 1024), (2, 1300)])
def test_vmap_equals_packing_one_by_one(shape):
    x = jnp.asarray(_oracle.random_array((3, *shape), np.float32, 0.4))
    packed = jax.jit(jax.vmap(functools.partial(pack, capacity=0.6)))(x)
    assert packed.shape == shape and packed.overflowed.shape == (3,)
    for k in range(3):
        one = pack(x[k], capacity=0.6)
        for name in BUFFERS:
            assert equal(getattr(packed, name)[k], getattr(one, name))
    assert equal(jax.jit(jax.vmap(unpack))(packed), x)


def test_scan():
    x = jnp.asarray(_oracle.random_array((3, 1100), np.float32, 0.4))
    _, packed = jax.lax.scan(lambda carry, row: (carry, pack(row)), None, x)
    _, unpacked = jax.lax.scan(lambda carry, row: (carry, unpack(row)), None, packed)
    assert equal(unpacked, x)


def test_no_gradient_flows_through_packing():
    x = jnp.arange(40.0)
    gradient = jax.grad(lambda x: jnp.sum(unpack(pack(x)) * x))(x)
    assert np.array_equal(gradient, x)


def test_scatter_and_loop_give_equal_values():
    for size, num_slots in ((0, 32), (40, 72), (2048, 544), (2500, 2000)):
        x = jnp.asarray(_oracle.random_array((size,), np.float32, 0.2, seed=3))
        arguments = (x, *jax.jit(words_and_offsets)(x))
        loop, scatter = (
            jax.jit(functools.partial(compact, num_slots=num_slots))(*arguments)
            for compact in (_compact_by_loop, _compact_by_scatter)
        )
        assert equal(loop, scatter) and arguments[2][-1] < num_slots


def test_the_loop_is_lowered_for_cpu_only():
    x = jnp.zeros(4096)
    counts = {
        platform: jax.jit(pack)
        .trace(x)
        .lower(lowering_platforms=(platform,))
        .as_text()
        .count("stablehlo.while")
        for platform in ("cpu", "cuda")
    }
    assert counts == {"cpu": 1, "cuda": 0}


def test_adding_a_zero_to_words_and_offsets_orders_unpacking():
    x = jnp.asarray(_oracle.random_array((3, 1024), np.float32, 0.5))

    def unpack_after(bitmap, other):
        zero = jnp.where(other < -jnp.inf, 1, 0)
        words = bitmap.words | zero.astype(jnp.uint32)
        return unpack(dataclasses.replace(bitmap, words=words, offsets=bitmap.offsets + zero))

    assert equal(jax.jit(unpack_after)(pack(x), jnp.float32(2.0)), x)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "x, options, error, message",
    [
        (jnp.arange(3), {}, TypeError, "`x` must have a floating-point dtype; got int32"),
        ([1.0], {}, TypeError, r"`x` must be an array; got \[1.0\]"),
        (np.ones(3), {}, ValueError, "`x` must have at most 32 bits unless jax_enable_x64"),
        (
            jnp.ones(3),
            {"capacity": 0.0},
            ValueError,
            r"`capacity` must be .* \(0.0, 1.0\]; got 0.0",
        ),
        (jnp.ones(3), {"capacity": 1.01}, ValueError, "`capacity` must be .* got 1.01"),
        (jnp.ones(3), {"capacity": "all"}, TypeError, "`capacity` must be .* got 'all'"),
        (
            jnp.ones(3),
            {"implementation": "cuda"},
            ValueError,
            r"one of \['pallas', 'xla'\]; got 'c",
        ),
    ],
)
def test_bad_input_of_pack(x, options, error, message):
    with pytest.raises(error, match=message):
        pack(x, **options)


@pytest.mark.bad_input
def test_too_many_entries():
    with pytest.raises(
        ValueError, match="`x` must have fewer than 2\\*\\*31 entries; got 2147483648"
    ):
        jax.eval_shape(pack, jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32))


@pytest.mark.bad_input
def test_bad_input_of_unpack():
    with pytest.raises(TypeError, match="`bitmap` must be Bitmap; got"):
        unpack(jnp.ones(3))
    with pytest.raises(ValueError, match="`implementation` must be one of"):
        unpack(pack(jnp.ones(3)), implementation="triton")
