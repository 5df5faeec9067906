"""Randomly changed manifests are rejected in one line or accepted, with bounded memory."""

import dataclasses
import json
import random
import resource

import pytest

from mlg_jax._errors import user_message
from mlg_jax.cli import main
from mlg_jax.engine import Predictor
from mlg_jax.export import PackedFileError, read_packed, write_packed

VALUES = (
    *(-1, 0, 1, 2, 3, 17, 4096, 2**31, 2**63, 10**18, 10**400, -(10**400)),
    *(0.0, 0.5, 1e-300, 1e308, True, None, "", "a", "cifar", "imagenet", "float64", "bool"),
    *("\ud800", "\x1b[2J\r\n", "\u202e", "*" * 300, "x" * 5000, "[!", "stage*"),
    *("resnet152", "vgg16", "packed", "factored", [], [0], [1, 2], [[]], [["*", None]]),
    *([4096, 4096], {}, {"a": 1}, {"\n": "\n"}, json.loads("[" * 40 + "]" * 40)),
)
KEYS = ("\x1b[1m", "a\nb")


def changed(rng, node, chance):
    """A JSON tree with some values replaced, some keys removed and some added."""
    if rng.random() < chance:
        alike = [value for value in VALUES if isinstance(value, type(node))]
        return rng.choice(alike if alike and rng.random() < 0.7 else VALUES)
    if isinstance(node, dict):
        kept = {k: changed(rng, v, chance) for k, v in node.items() if rng.random() > chance / 4}
        return kept | ({rng.choice(KEYS): 1} if rng.random() < chance else {})
    if not isinstance(node, list):
        return node
    return [changed(rng, value, chance) for value in node] * rng.choice((1, 1, 1, 1, 1, 2))


def outcome(path, capsys):
    """Whether a file is refused or taken."""
    status = main(["inspect", str(path)])
    out, err = capsys.readouterr()
    assert all(map(str.isprintable, out.split("\n")))
    assert (status, err) == (0, "") or (status == 2 and err[:-1].isprintable() and err[-1] == "\n")
    assert main(["inspect", str(path), "--json"]) == status
    assert capsys.readouterr().out.isascii()
    if status:
        return "refused"
    try:
        Predictor(read_packed(path))
    except PackedFileError as error:
        assert len(user_message(error)) < 13_000
        return "refused"
    return "taken"


def peak_bytes():
    """Peak resident memory of this process since its start."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize(
    "count", [200, pytest.param(6000, marks=pytest.mark.slow)], ids=["some", "many"]
)
@pytest.mark.bad_input
def test_any_manifest(path, tmp_path, capsys, count):
    rng, packed = random.Random(count), read_packed(path)
    outcomes = {"refused": 0, "taken": 0}
    before = peak_bytes()
    for _ in range(count):
        # Without class names, the number of classes can change without an error.
        names = rng.choice(([], packed.manifest["class_names"]))
        given = {**packed.manifest, "class_names": names}
        manifest = changed(rng, given, rng.choice((0.01, 0.03, 0.1)))
        tree = manifest if isinstance(manifest, dict) else {}
        write_packed(tmp_path / "a.mlg", dataclasses.replace(packed, manifest=tree))
        outcomes[outcome(tmp_path / "a.mlg", capsys)] += 1
    assert min(outcomes.values()) > count // 50, outcomes
    # Flax and JAX cache something for each traced network.
    assert peak_bytes() - before < 2**27 + count * 2**16
