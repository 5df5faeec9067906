"""The Triton kernels follow the format when interpreted, and lower for CUDA without a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax.bitmap import _pallas, pack, unpack
from mlg_jax.bitmap._ops import words_and_offsets
from tests.bitmap import _oracle

pytestmark = pytest.mark.filterwarnings(
    "ignore:The Pallas Triton backend is deprecated:DeprecationWarning"
)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
@pytest.mark.parametrize("size", [0, 1024, 2500])
def test_kernels_follow_the_format(size, dtype):
    x = _oracle.random_array((size,), dtype, 0.5, seed=size)
    if dtype == jnp.bfloat16:
        # Finite values only: the interpreter converts bfloat16 to float32, which quiets NaNs.
        _oracle.bits_of(x)[:] &= 0xFF7F
    _, offsets = words_and_offsets(jnp.asarray(x))
    values = _pallas.compact(jnp.asarray(x), offsets, size + 32, interpret=True)
    assert np.array_equal(_oracle.bits_of(values), _oracle.pack(x, size)[1])
    bits = _pallas.expand(pack(jnp.asarray(x)), interpret=True)
    assert np.array_equal(bits[:size], _oracle.bits_of(x)) and not bits[size:].any()


def test_kernels_stay_within_their_buffers_after_an_overflow():
    x = np.arange(1, 2501, dtype=np.float32)
    _, offsets = words_and_offsets(jnp.asarray(x))
    values = _pallas.compact(jnp.asarray(x), offsets, 100 + 32, interpret=True)
    assert values.shape == (132,) and np.array_equal(values[:100], x[:100])
    bits = _pallas.expand(pack(jnp.asarray(x), capacity=0.04), interpret=True)
    assert np.array_equal(bits[:100], _oracle.bits_of(x[:100]))


def lowered_for_cuda(function, *arguments):
    """The lowered program as text; JAX 0.11 needs to know the GPU."""
    device = jax.sharding.AbstractDevice("NVIDIA A100", None, "cuda")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_kernels_lower_for_cuda(dtype):
    x = jax.ShapeDtypeStruct((40, 70), dtype)
    bitmap = jax.eval_shape(pack, x)
    packing = lowered_for_cuda(functools.partial(pack, implementation="pallas"), x)
    unpacking = lowered_for_cuda(functools.partial(unpack, implementation="pallas"), bitmap)
    assert "bitmap_compact" in packing and "bitmap_expand" in unpacking


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_on_a_gpu(implementation):
    x = _oracle.random_array((33, 7000), np.float32, 0.5)
    bitmap = pack(jnp.asarray(x), capacity=0.75, implementation=implementation)
    _, values, _ = _oracle.pack(x, bitmap.capacity)
    assert np.array_equal(_oracle.bits_of(bitmap.values), values)
    unpacked = unpack(bitmap, implementation=implementation)
    assert np.array_equal(_oracle.bits_of(unpacked), _oracle.bits_of(x))
