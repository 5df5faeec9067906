"""`Bitmap` as a pytree, and the formula of its bytes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax.bitmap import Bitmap, pack, unpack

BUFFERS = ("words", "values", "offsets")


@pytest.mark.parametrize(
    "shape, dtype, capacity",
    [
        ((), jnp.float32, None),
        ((0,), jnp.float32, 0.3),
        ((31,), jnp.bfloat16, 0.3),
        ((1024,), jnp.float32, None),
        ((1025,), jnp.bfloat16, None),
        ((3, 40, 70), jnp.float32, 0.3),
    ],
)
def test_nbytes_is_the_sum_of_the_buffers(shape, dtype, capacity):
    bitmap = pack(jnp.ones(shape, dtype), capacity=capacity)
    assert bitmap.nbytes == sum(getattr(bitmap, name).nbytes for name in BUFFERS)


@pytest.mark.parametrize(
    "size, dtype, capacity, expected",
    [
        (2**20, jnp.float32, 0.5, 2**20 // 8 + 4 * (2**19 + 32) + 4 * 1025),
        (2**20, jnp.bfloat16, None, 2**20 // 8 + 2 * (2**20 + 32) + 4 * 1025),
        (1500, jnp.float32, 0.1, 256 + 4 * (150 + 32) + 4 * 3),
    ],
)
def test_nbytes_in_closed_form(size, dtype, capacity, expected):
    bitmap = jax.eval_shape(
        lambda x: pack(x, capacity=capacity), jax.ShapeDtypeStruct((size,), dtype)
    )
    assert bitmap.nbytes == expected


def test_half_zeros_take_little_more_than_half_the_bytes():
    bitmap = jax.eval_shape(lambda x: pack(x, capacity=0.5), jax.ShapeDtypeStruct((2**22,), "f4"))
    assert bitmap.nbytes / (4 * 2**22) < 0.5 + 1 / 32 + 0.001


def test_a_bitmap_is_a_frozen_pytree():
    x = jnp.asarray([[0.0, 1.0], [2.0, 0.0]])
    bitmap = pack(x, capacity=0.5)
    leaves, tree = jax.tree.flatten(bitmap)
    assert [leaf.dtype for leaf in leaves] == [jnp.uint32, jnp.float32, jnp.int32]
    again = jax.tree.unflatten(tree, leaves)
    assert (again.shape, again.dtype, again.capacity) == ((2, 2), jnp.float32, 2)
    assert np.array_equal(unpack(jax.jit(lambda b: b)(again)), x)
    with pytest.raises(dataclasses.FrozenInstanceError):
        bitmap.capacity = 3


def test_count_and_overflow_are_read_from_the_offsets():
    bitmap = Bitmap(
        words=jnp.zeros(64, jnp.uint32),
        values=jnp.zeros(42),
        offsets=jnp.asarray([0, 7, 11], jnp.int32),
        shape=(2000,),
        dtype=jnp.dtype("float32"),
        capacity=10,
    )
    assert int(bitmap.count) == 11 and bool(bitmap.overflowed)
    assert not dataclasses.replace(bitmap, capacity=11).overflowed
