"""Packing of codes against one large integer, and round trips on the host and traced."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from mlg_jax.export._bitstream import join_codes, num_bytes, split_codes, split_codes_traced

BITS = st.integers(1, 16)


def joined(codes, bits):
    """The definition: all codes as digits of one large integer."""
    number = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


@hypothesis.given(st.data(), BITS)
def test_codes_are_the_digits_of_a_number(data, bits):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    stream = join_codes(np.array(codes, np.uint16), bits)
    assert stream.dtype == np.uint8 and stream.tobytes() == joined(codes, bits)
    assert stream.size == num_bytes(len(codes), bits)
    assert split_codes(stream, bits, len(codes)).tolist() == codes


def test_the_example_of_the_document():
    assert join_codes(np.array([1, 2, 7, 4]), 3).tobytes() == bytes.fromhex("d109")


@pytest.mark.parametrize("bits", range(1, 17))
def test_traced_is_the_same(bits):
    rng = np.random.default_rng(bits)
    for size in (1, 29):
        codes = rng.integers(0, 2**bits, size)
        stream = join_codes(codes, bits)
        traced = jax.jit(split_codes_traced, static_argnums=(1, 2))(stream, bits, size)
        host = split_codes(stream, bits, size)
        assert np.array_equal(traced, codes) and np.array_equal(host, codes)
        assert traced.dtype == host.dtype == (np.uint8 if bits <= 8 else np.uint16)


def test_order_and_memory_layout_do_not_matter():
    codes = np.arange(12).reshape(3, 4)
    assert np.array_equal(join_codes(codes.T, 4), join_codes(codes.T.copy(), 4))
