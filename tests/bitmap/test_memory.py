"""Compiled programs need no temporaries of the array's size, and save no dense array."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from mlg_jax.bitmap import pack, unpack

SIZE = 2**20
BITS_BYTES = SIZE // 8


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def temporary_bytes(function, *arguments):
    return compiled(function, *arguments).memory_analysis().temp_size_in_bytes


def abstract(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    "shape, dtype, bound",
    [
        ((SIZE,), jnp.float32, BITS_BYTES // 8),  # a whole number of blocks: offsets only
        ((4, 512, 512), jnp.float16, BITS_BYTES // 8),
        ((SIZE - 320,), jnp.float32, 1.1 * BITS_BYTES),  # words, to pad the last block
        ((SIZE - 37,), jnp.float32, 1.1 * BITS_BYTES),
    ],
)
def test_temporaries_of_pack(shape, dtype, bound):
    assert temporary_bytes(lambda x: pack(x, capacity=0.6), abstract(shape, dtype)) <= bound


def test_temporaries_of_pack_in_bfloat16():
    """One bit per entry; jax 0.10 also needs integer copies of entries and values."""
    bound = BITS_BYTES if jax.__version_info__ >= (0, 11) else 1.7 * 2 * SIZE
    assert temporary_bytes(lambda x: pack(x, capacity=0.6), abstract((SIZE,), "bfloat16")) <= bound


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("size", [SIZE, SIZE - 320, SIZE - 37])
def test_temporaries_of_unpack(size, dtype):
    """Two integers of 32 bits per word: where its values start, and the sum within its block."""
    bitmap = jax.eval_shape(lambda x: pack(x, capacity=0.6), abstract((size,), dtype))
    assert temporary_bytes(unpack, bitmap) <= 1.25 * BITS_BYTES


def test_the_loop_is_compiled_as_one_kernel():
    """Otherwise each iteration takes microseconds; XLA:CPU marks loops that it compiles whole."""
    for dtype in (jnp.float32, jnp.bfloat16):
        text = compiled(pack, abstract((SIZE,), dtype)).as_text()
        assert 'xla_cpu_small_call="true"' in text


def chain(x, w, is_packed):
    """Six layers forward, then backward over their residuals."""
    kept, zero = [], 0.0
    for _ in range(6):
        x = jnp.maximum(x @ (w + zero), 0.0)
        kept.append(pack(x, capacity=0.5) if is_packed else x)
        if is_packed:  # the next layer waits for the bitmap, so that the dense array can be freed
            zero = jnp.where(kept[-1].count < 0, 1.0, 0.0)
    for entry in reversed(kept):
        x = x @ w.T
        x = x * (unpack(after(entry, x)) if is_packed else entry)
    return x


def after(bitmap, x):
    never = jnp.where(x[0, 0] < -jnp.inf, 1, 0)
    words = bitmap.words | never.astype(jnp.uint32)
    return dataclasses.replace(bitmap, words=words, offsets=bitmap.offsets + never)


def test_only_packed_residuals_are_saved():
    """In units of one array: six residuals of 0.53 instead of 1, besides the working set."""
    x = abstract((1024, 1024))
    dense, packed = (
        temporary_bytes(functools.partial(chain, is_packed=p), x, x) / (4 * 1024**2)
        for p in (False, True)
    )
    assert 6 <= dense <= 8
    # 1.5: the tied weights, and one array that is both packed and still dense
    assert packed <= dense - 6 * (1 - 0.54) + 1.5
