"""The command `mlg`: its output, and one line with status 2 for every input error."""

import dataclasses
import io
import json
import pathlib
import sys
import tomllib
from unittest import mock

import numpy as np
import PIL.Image
import pytest

import mlg_jax
from mlg_jax.cli import _inspect, _main, _predict, main
from mlg_jax.cli._text import write
from mlg_jax.export import read_packed, write_packed
from mlg_jax.train import CheckpointError
from tests.engine import _trained

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def image_paths(tmp_path_factory):
    """Images of the network's size, so that reading does not change pixels."""
    directory = tmp_path_factory.mktemp("images")
    paths = [str(directory / f"{index}.png") for index in range(3)]
    for path, pixels in zip(paths, _trained.pixels(3), strict=True):
        PIL.Image.fromarray(pixels).save(path)
    return paths


@pytest.fixture(scope="module")
def probabilities(path):
    return mlg_jax.load_packed(path).probabilities(_trained.pixels(3))


def test_predict_writes_json(path, image_paths, probabilities, capsys):
    assert main(["predict", str(path), *image_paths, "--top", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == image_paths
    for row, expected in zip(rows, probabilities, strict=True):
        best = np.argsort(-expected)[:3]
        assert [label["index"] for label in row["labels"]] == best.tolist()
        assert [label["name"] for label in row["labels"]] == [_trained.CLASS_NAMES[i] for i in best]
        found = [label["probability"] for label in row["labels"]]
        assert found == pytest.approx(expected[best].tolist())


def test_predict_writes_every_class_of_a_small_network(path, image_paths, probabilities, capsys):
    """`--top` defaults to 5, more than the 4 classes; a larger grey JPEG is converted."""
    grey = pathlib.Path(image_paths[0]).with_name("grey.jpg")
    PIL.Image.new("L", (50, 40), 128).save(grey)
    assert main(["predict", str(path), image_paths[0], str(grey)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == image_paths[0] and lines[5] == str(grey) and len(lines) == 10
    best = int(np.argmax(probabilities[0]))
    assert lines[1].split() == [f"{probabilities[0][best]:.2%}", _trained.CLASS_NAMES[best]]


def test_inspect_shows_layers_and_what_was_recorded(path, capsys):
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("stage2_block1/conv2"))
    # 6 x 2 x 9 codes of 3 bits, 6 x 32 x 2 of 9, 32 x 6 of 4 and the range: 41 + 432 + 96 + 9
    # bytes; constants of four bytes for each factor.
    assert line.split()[-2:] == ["687", f"{41 + 432 + 96 + 9 + 3 * 4}"]
    assert "basis 6x2x9, coeff_in 6x32x2, coeff_out 32x6" in line and "3 9 4" in line
    for expected in ("test accuracy  0.9371", "cat, dog, eel, fox", "name           tiny"):
        assert expected in text


def test_inspect_writes_json(path, capsys):
    assert main(["inspect", str(path), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["file_bytes"] == path.stat().st_size
    assert tree["metrics"] == _trained.METRICS and tree["model"]["num_classes"] == 4
    num_bytes = sum(layer["num_bytes"] for layer in tree["layers"])
    packed = mlg_jax.load_packed(path, residency="packed")
    assert num_bytes == packed.resident_bytes < tree["file_bytes"]


@pytest.mark.parametrize("options", [[], ["--json", "--residency", "packed", "--fold"]])
def test_bench_measures(path, options, capsys):
    assert main(["bench", str(path), "--batch", "2", "--runs", "3", *options]) == 0
    text = capsys.readouterr().out
    if options:
        tree = json.loads(text)
        (row,) = tree["batches"]
        assert 0 < row["p50_seconds"] <= row["p99_seconds"] < row["first_seconds"]
        assert row["images_per_second"] == pytest.approx(2 / row["p50_seconds"])
        text = str(tree["resident_bytes"])
    assert f"{mlg_jax.load_packed(path).resident_bytes:,}" in text or options


@pytest.mark.bad_input
@pytest.mark.parametrize("command", ["predict", "inspect", "bench"])
@pytest.mark.parametrize("content", [None, b"", b"no model", "directory"])
def test_wrong_files_give_one_line(tmp_path, command, content, capsys):
    path = tmp_path / "wrong.mlg"
    if content == "directory":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    images = ["image.png"] if command == "predict" else []
    assert main([command, str(path), *images]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert "wrong.mlg" in captured.err


HOSTILE = ("cat\x1b[2J", "99.99%\n  99.99%  dog", "eel\ud800", "\u202efox" * 10**4)
HARMLESS = ("cat\\x1b[2J", "99.99%\\n  99.99%  dog", "eel\\ud800", "\\u202efox\\u202efox")


@pytest.fixture
def hostile_path(path, tmp_path):
    """A file whose names and metadata contain terminal control sequences."""
    packed = read_packed(path)
    more = {"class_names": HOSTILE, "note\x1b[1m": "\x07" * 10**5, "metrics": {"a\nb": 1.0}}
    write_packed(
        tmp_path / "hostile.mlg", dataclasses.replace(packed, manifest=packed.manifest | more)
    )
    return tmp_path / "hostile.mlg"


@pytest.mark.bad_input
def test_names_are_printed_harmlessly(hostile_path, image_paths, capsys):
    image = pathlib.Path(image_paths[0])
    named = image.rename(image.with_name("a\n\x1b[1m.png"))
    assert main(["predict", str(hostile_path), str(named)]) == 0
    named.rename(image)
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 1 + 4 + 1 and lines.pop() == ""
    assert lines[0].endswith("a\\n\\x1b[1m.png") and all(map(str.isprintable, lines))
    for name in HARMLESS:
        assert any(name in line for line in lines[1:]), name
    assert main(["inspect", str(hostile_path)]) == 0
    text = capsys.readouterr().out
    assert all(map(str.isprintable, text.split("\n"))) and len(text) < 30_000
    assert ", ".join(HARMLESS[:3]) in text and "note\\x1b[1m" in text and "a\\nb" in text


@pytest.mark.bad_input
def test_json_has_the_names_as_they_are(hostile_path, capsys):
    assert main(["inspect", str(hostile_path), "--json"]) == 0
    text = capsys.readouterr().out
    assert text.isascii() and tuple(json.loads(text)["class_names"]) == HOSTILE


@pytest.mark.bad_input
def test_an_error_says_no_more_than_a_line_of_a_manifest(path, tmp_path, capsys):
    packed = read_packed(path)
    model = {**packed.manifest["model"], "name": "\x1b[1m\n" * 10**5}
    manifest = {**packed.manifest, "model": model}
    write_packed(tmp_path / "a.mlg", dataclasses.replace(packed, manifest=manifest))
    assert main(["inspect", str(tmp_path / "a.mlg")]) == 2
    line = capsys.readouterr().err
    assert line[:-1].isprintable() and len(line) < 13_000 and "`name` must be one of" in line


def test_an_encoding_without_some_characters(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    write("ä 猫\n")
    assert stream.buffer.getvalue() == b"\\xe4 \\u732b\n"


@pytest.mark.parametrize("size, expected", [(32, 128), (128, 128), (224, 32), (512, 8), (4096, 1)])
def test_images_are_taken_a_batch_at_a_time(size, expected):
    assert _predict._chunk_size(size, size) == expected


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "content, message",
    [(None, "No such file"), (b"no image", "must be a readable PNG, JPEG or WebP")],
)
def test_wrong_images_give_one_line(path, tmp_path, image_paths, content, message, capsys):
    wrong = tmp_path / "wrong.png"
    if content is not None:
        wrong.write_bytes(content)
    assert main(["predict", str(path), image_paths[0], str(wrong)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert message in captured.err and "wrong.png" in captured.err


@pytest.mark.bad_input
def test_files_without_preprocessing_cannot_take_images(tmp_path, model_and_variables, capsys):
    mlg_jax.save_packed(tmp_path / "model.mlg", *model_and_variables)
    assert main(["predict", str(tmp_path / "model.mlg"), "image.png"]) == 2
    assert "does not specify how images are preprocessed" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["fly"], ["predict"], ["bench", "--batch"]])
def test_wrong_arguments_are_argparses(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage: mlg" in capsys.readouterr().err


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "a.mlg"), CheckpointError("a\x1b[1m\nb")]
)
def test_every_user_error_is_one_line(monkeypatch, path, error, capsys):
    monkeypatch.setattr(_inspect, "read_packed", mock.Mock(side_effect=error))
    assert main(["inspect", str(path)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line[:-1].isprintable() and line[-1] == "\n"


@pytest.mark.parametrize("error", [ValueError("Incompatible shapes"), TypeError, KeyError("a")])
def test_our_own_faults_keep_their_traceback(monkeypatch, path, error):
    monkeypatch.setattr(_inspect, "read_packed", mock.Mock(side_effect=error))
    with pytest.raises((ValueError, TypeError, KeyError)):
        main(["inspect", str(path)])


def test_every_argument_is_explained():
    commands = next(a for a in _main._parser([])._actions if a.choices).choices
    assert sorted(commands) == sorted(_main.COMMANDS)
    for command, parser in commands.items():
        for action in parser._actions:
            assert action.help and len(action.help.split()) > 1, (command, action.dest)


def test_pip_installs_the_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["mlg"] == "mlg_jax.cli:main"
