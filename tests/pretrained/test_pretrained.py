"""The trained networks of the package know drawings, are small, and say what they are."""

import json
import typing

import numpy as np
import pytest

from mlg_jax import load_pretrained, pretrained
from mlg_jax.cli import main
from mlg_jax.engine import export_onnx
from mlg_jax.export import read_packed
from mlg_jax.pretrained import PRETRAINED, pretrained_path
from mlg_jax.pretrained._load import PretrainedName
from tests.pretrained import _pictures

CARD = {"accuracy", "data", "intended use", "licence", "recipe"}


def test_names_are_those_of_the_files():
    files = {path.stem for path in pretrained_path("cifar10_cnn").parent.glob("*.mlg")}
    assert files == set(PRETRAINED) == set(typing.get_args(PretrainedName))


def test_all_files_together_are_small():
    """The limits of the wheel; the first is the claim of the README."""
    sizes = {name: pretrained_path(name).stat().st_size for name in PRETRAINED}
    assert sizes["cifar10_cnn"] <= 100_000 and sizes["cifar10_cnn_small"] <= 60_000
    assert sum(sizes.values()) <= 250 * 1024


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_network_knows_drawings(name, tmp_path):
    predictor = load_pretrained(name)
    paths = _pictures.save_all(tmp_path)
    images = predictor.preprocessing.read(list(map(str, paths)))
    found = [labels[0].name for labels in predictor.labels(images)]
    assert found == [path.stem for path in paths]


@pytest.mark.parametrize("name", PRETRAINED)
def test_onnx_runtime_gives_the_same_logits(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    predictor = load_pretrained(name)
    images = predictor.preprocessing.read(list(map(str, _pictures.save_all(tmp_path))))
    data = export_onnx(read_packed(pretrained_path(name)))
    (found,) = onnxruntime.InferenceSession(data).run(None, {"images": np.asarray(images)})
    expected = predictor(images)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_card_says_what_it_is(name, capsys):
    manifest = read_packed(pretrained_path(name)).manifest
    assert set(manifest["card"]) == CARD and all(manifest["card"].values())
    assert f"{manifest['metrics']['test_accuracy']:.2%}" in manifest["card"]["accuracy"]
    assert main(["inspect", "--pretrained", name]) == 0
    shown = capsys.readouterr().out
    assert all(f"{heading:14} {text}" in shown for heading, text in manifest["card"].items())


def test_the_table_of_the_module_is_that_of_the_files():
    for name in PRETRAINED:
        path = pretrained_path(name)
        accuracy = read_packed(path).manifest["metrics"]["test_accuracy"]
        row = f"| `{name}` | CIFAR-10 | {accuracy:.1%} | {path.stat().st_size / 1024:.0f} KB |"
        assert row.replace("%", " %") in pretrained.__doc__


def test_the_command_line_classifies_a_picture(tmp_path, capsys):
    paths = list(map(str, _pictures.save_all(tmp_path)))
    command = ["predict", "--pretrained", "cifar10_cnn_small", *paths, "--json", "--top", "1"]
    assert main(command) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["image"], row["labels"][0]["name"]) for row in rows] == [
        (path, draw.__name__) for path, draw in zip(paths, _pictures.DRAWINGS, strict=True)
    ]


@pytest.mark.bad_input
def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"`name` must be one of .*cifar10_cnn.*; got 'resnet'"):
        load_pretrained("resnet")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["inspect"], "Give either FILE or --pretrained; got neither."),
        (
            ["inspect", "a.mlg", "--pretrained", "cifar10_cnn"],
            "Give either FILE or --pretrained; got 'a.mlg' and 'cifar10_cnn'.",
        ),
        (["predict", "a.mlg"], "Give FILE and at least one IMAGE; got 'a.mlg' only."),
        (["bench"], "Give either FILE or --pretrained; got neither."),
    ],
)
def test_either_a_file_or_a_name(arguments, message, capsys):
    assert main(arguments) != 0
    assert message in capsys.readouterr().err
