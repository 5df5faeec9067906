"""Randomly damaged files, with or without corrected lengths and checksums: refused or read."""

import functools
import json
import random
import tracemalloc

import jax
import numpy as np
import pytest

from mlg_jax._errors import user_message
from mlg_jax.export import (
    PackedFileError,
    PackedModel,
    from_torch,
    read_packed,
    torch_num_classes,
    unpack_variables,
)
from mlg_jax.export._archive import DEFLATED, PLAIN, to_bytes
from mlg_jax.export._deflate import deflate_text, inflate_text
from mlg_jax.layers import layer_records
from tests._models import tiny_resnet, variable_shapes
from tests.export import _torch_networks as networks
from tests.export._examples import blob_of, container_of, example, skewed

CONTENT = to_bytes(example())
BLOB = blob_of(CONTENT)
INDEX_END = 4 + int.from_bytes(BLOB[:4], "little")
INDEX, DATA = BLOB[4:INDEX_END], BLOB[INDEX_END:]
SKEWED = PackedModel(skewed().tensors[::12], {"n": 1})
DEFLATED_CONTENT = to_bytes(SKEWED, DEFLATED)
DEFLATED_BLOB = blob_of(DEFLATED_CONTENT)
DEFLATED_END = 4 + int.from_bytes(DEFLATED_BLOB[:4], "little")
DEFLATED_INDEX, DEFLATED_DATA = DEFLATED_BLOB[4:DEFLATED_END], DEFLATED_BLOB[DEFLATED_END:]
# Replacements for a number or a word of the index.
WORDS = (
    *(b"-1", b"0", b"1", b"2", b"7", b"99", b"1e9", b"1e999", b"0.5", b"9" * 30),
    *(b"true", b"null", b"NaN", b"[]", b"{}", b'""', b'"a"', b'"bool"', b'"qnn:2"', b'"params"'),
    *(b",", b":", b"[", b"]", b"{", b"}", b'"', b"\\", b"\xff"),
)
VALUES = (
    -1,
    0,
    1,
    3,
    2**31,
    10**400,
    "\x1b[1m",
    "\ud800",
    [[[]]],
    2**64,
    1e300,
    0.5,
    True,
    None,
    "",
    "bool",
    "qnn:3",
    [],
    [0],
    [[]],
    {},
)
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
    """`data` with one to three random changes, sometimes truncated."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(data))
        stop = min(len(data), start + rng.choice((1, 1, 1, 2, 8, 40)))
        data = data[:start] + rng.choice(EDITS)(rng, data[start:stop]) + data[stop:]
        data = data or b"\0"
    return data[: rng.randrange(len(data))] if rng.random() < 0.02 else data


def mended(index, data, version=PLAIN):
    """A file with the given index and data, and correct lengths and checksum."""
    return container_of(len(index).to_bytes(4, "little") + index + data, version)


def deflated(rng):
    """A deflated file with other values in its index, or with damaged streams."""
    if rng.random() < 0.5:
        index = json.loads(inflate_text(DEFLATED_INDEX, 2**22))
        index = deflate_text(json.dumps(with_values(rng, index)).encode())
        return mended(index, DEFLATED_DATA, DEFLATED)
    index = mutated(rng, DEFLATED_INDEX) if rng.random() < 0.5 else DEFLATED_INDEX
    data = DEFLATED_DATA if rng.random() < 0.5 else mutated(rng, DEFLATED_DATA)
    return mended(index, data, DEFLATED)


def with_values(rng, node):
    """A JSON tree in which some values are replaced at random."""
    if rng.random() < 0.03:
        return rng.choice(VALUES)
    if isinstance(node, dict):
        return {key: with_values(rng, value) for key, value in node.items()}
    return [with_values(rng, value) for value in node] if isinstance(node, list) else node


# Ways to damage a file: any bytes; or, with lengths and checksum corrected, bytes of the index,
# bytes of the data, or values in the index.
DAMAGES = (
    lambda rng: mutated(rng, CONTENT),
    lambda rng: mended(mutated(rng, INDEX), DATA),
    lambda rng: mended(INDEX, mutated(rng, DATA)),
    lambda rng: mended(json.dumps(with_values(rng, json.loads(INDEX))).encode(), DATA),
    deflated,
)


def fuzz(path, count, seed):
    """The numbers of files that are refused and read."""
    rng, outcomes = random.Random(seed), {"refused": 0, "read": 0}
    for number in range(count):
        damage = DAMAGES[number % len(DAMAGES)]
        content = damage(rng)
        path.write_bytes(content)
        tracemalloc.reset_peak()
        try:
            packed = read_packed(path)
        except PackedFileError as error:
            outcomes["refused"] += 1
            assert user_message(error).isprintable() and len(str(error)) < 600
        else:
            outcomes["read"] += 1
            # Without a corrected checksum, only irrelevant bytes can have changed.
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
    # Both outcomes are frequent, so that the checks and the code after them are exercised.
    assert outcomes["refused"] > count // 2 and outcomes["read"] > count // 50, outcomes


def changed_name(rng, name):
    scopes = (
        "module.",
        "_orig_mod.",
        "model.",
        "ema_model.",
        "\x1b[1m.",
        "\ud800",
        "layer1.",
        "n.",
    )
    return rng.choice(
        (
            lambda: rng.choice(scopes) + name,
            lambda: name.replace(".", f".{rng.choice(scopes)}", 1),
            lambda: name.rpartition(".")[0],
            lambda: rng.choice(("", "n_averaged", "a" * 10**5, "a." * 10**4)),
        )
    )()


def changed_array(rng, array):
    return rng.choice(
        (
            lambda: array[..., :0],
            lambda: array[..., None],
            lambda: array.reshape(-1),
            lambda: array.astype(rng.choice((">f4", "f8", "f2", "i8", "?", "u1"))),
            lambda: array * np.float32(rng.choice((0, np.nan, np.inf))),
            lambda: np.zeros((0, 2**40), np.float32),
        )
    )()


def changed_state(rng, state):
    """A wrapped state dict with changed, missing and additional names and arrays."""
    prefix = "".join(rng.choices(("module.", "_orig_mod.", "model.", "net."), k=rng.randint(0, 3)))
    state = {prefix + name: value for name, value in state.items()}
    for name in rng.sample(sorted(state), rng.choice((0, 0, 1, 1, 2))):
        value = state.pop(name)
        what = rng.randrange(4)
        if what < 3:
            key = changed_name(rng, name) if what == 1 else name
            state[key] = changed_array(rng, value) if what == 2 else value
    return state


@pytest.mark.parametrize(
    "count", [300, pytest.param(6000, marks=pytest.mark.slow)], ids=["some", "many"]
)
@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_changed_state_dicts_are_imported_or_refused(count):
    """Valid state dicts are imported completely; all others raise one of our errors."""
    rng, net = random.Random(count), networks.Network()
    networks.resnet(net, np.zeros((1, 3, 8, 8)), 3, sizes=(1, 1), channels=4, is_cifar=True)
    plain = {name: np.asarray(value, np.float32) for name, value in net.state.items()}
    model = tiny_resnet(channels=4, num_classes=3)
    records, template = layer_records(model), variable_shapes(model)
    imported = functools.partial(from_torch, architecture="resnet")
    expected, outcomes = imported(plain, records, template), {"refused": 0, "imported": 0}
    for _ in range(count):
        state = changed_state(rng, plain)
        try:
            assert torch_num_classes(state, records, architecture="resnet") < 2**20
            found = imported(state, records, template)
        except ValueError as error:
            outcomes["refused"] += 1
            message = user_message(error)
            assert message is not None and message.isprintable() and len(str(error)) < 20_000
            continue
        outcomes["imported"] += 1
        assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, expected)
        if len(state) == len(plain) and sum(map(np.sum, state.values())) == sum(
            map(np.sum, plain.values())
        ):
            jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert min(outcomes.values()) > count // 5, outcomes
