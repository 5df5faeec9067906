"""Files damaged at random, naively and with their lengths and checksum mended: refused, or read."""

import json
import random
import tracemalloc

import jax
import pytest

from mlg_jax.export import PackedFileError, read_packed, unpack_variables
from mlg_jax.export._archive import to_bytes
from tests.export._examples import blob_of, container_of, example

CONTENT = to_bytes(example())
BLOB = blob_of(CONTENT)
INDEX_END = 4 + int.from_bytes(BLOB[:4], "little")
INDEX, DATA = BLOB[4:INDEX_END], BLOB[INDEX_END:]
# What is put in the place of a number or a word of the index.
WORDS = (
    *(b"-1", b"0", b"1", b"2", b"7", b"99", b"1e9", b"1e999", b"0.5", b"9" * 30),
    *(b"true", b"null", b"NaN", b"[]", b"{}", b'""', b'"a"', b'"bool"', b'"qnn:2"', b'"params"'),
    *(b",", b":", b"[", b"]", b"{", b"}", b'"', b"\\", b"\xff"),
)
VALUES = (-1, 0, 1, 3, 2**31, 2**64, 1e300, 0.5, True, None, "", "bool", "qnn:3", [], [0], [[]], {})
EDITS = (
    lambda rng, piece: bytes(piece[:-1]) + bytes([piece[-1] ^ 1 << rng.randrange(8)]),
    lambda rng, piece: rng.randbytes(len(piece)),
    lambda rng, piece: b"",
    lambda rng, piece: piece + piece,
    lambda rng, piece: rng.choice((b"\0", b"\xff")) * len(piece),
    lambda rng, piece: rng.choice(WORDS),
    lambda rng, piece: piece[::-1],
)


def mutated(rng, data):
    """`data` with one to three random changes, now and then cut short."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(data))
        stop = min(len(data), start + rng.choice((1, 1, 1, 2, 8, 40)))
        data = data[:start] + rng.choice(EDITS)(rng, data[start:stop]) + data[stop:]
        data = data or b"\0"
    return data[: rng.randrange(len(data))] if rng.random() < 0.02 else data


def mended(index, data):
    """A file around these two whose lengths and checksum are true."""
    return container_of(len(index).to_bytes(4, "little") + index + data)


def with_values(rng, node):
    """A tree of JSON in which some values are others."""
    if rng.random() < 0.03:
        return rng.choice(VALUES)
    if isinstance(node, dict):
        return {key: with_values(rng, value) for key, value in node.items()}
    return [with_values(rng, value) for value in node] if isinstance(node, list) else node


# Ways to damage a file: as it is; its index or its data, mended; the meaning of its index, mended.
DAMAGES = (
    lambda rng: mutated(rng, CONTENT),
    lambda rng: mended(mutated(rng, INDEX), DATA),
    lambda rng: mended(INDEX, mutated(rng, DATA)),
    lambda rng: mended(json.dumps(with_values(rng, json.loads(INDEX))).encode(), DATA),
)


def fuzz(path, count, seed):
    """The numbers of files refused and read."""
    rng, outcomes = random.Random(seed), {"refused": 0, "read": 0}
    for number in range(count):
        damage = DAMAGES[number % len(DAMAGES)]
        content = damage(rng)
        path.write_bytes(content)
        tracemalloc.reset_peak()
        try:
            packed = read_packed(path)
        except PackedFileError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
            # Of a file whose checksum was not mended, nothing that counts can have changed.
            assert damage is not DAMAGES[0] or to_bytes(packed) == CONTENT, content
            leaves = jax.tree.leaves(unpack_variables(packed))
            assert sum(leaf.nbytes for leaf in leaves) <= 32 * len(content)
        assert tracemalloc.get_traced_memory()[1] < 2**22, content
    return outcomes


@pytest.mark.parametrize(
    "count", [600, pytest.param(20_000, marks=pytest.mark.slow)], ids=["some", "many"]
)
@pytest.mark.bad_input
def test_damaged_files_are_refused_or_read(tmp_path, count):
    tracemalloc.start()
    try:
        outcomes = fuzz(tmp_path / "damaged", count, seed=count)
    finally:
        tracemalloc.stop()
    # Neither outcome is rare, so that both the checks and what lies behind them are exercised.
    assert outcomes["refused"] > count // 2 and outcomes["read"] > count // 50, outcomes
