"""ONNX models at the command line: the predictor's labels, without JAX, and clear errors."""

import json
import subprocess
import sys

import pytest

from mlg_jax.cli import main
from tests.pretrained import _pictures

onnx = pytest.importorskip("onnx", reason="needs mlg-jax[onnx]")
pytest.importorskip("onnxruntime")
NAME = "cifar10_cnn_small"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return list(map(str, _pictures.save_all(tmp_path_factory.mktemp("pictures"))))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("onnx") / "model.onnx")
    assert main(["export", "--pretrained", NAME, path]) == 0
    return path


def printed(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def check_same(found, expected):
    assert [row["image"] for row in found] == [row["image"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert [label["name"] for label in one["labels"]] == (
            [label["name"] for label in other["labels"]]
        )
        for label, right in zip(one["labels"], other["labels"], strict=True):
            assert label["probability"] == pytest.approx(right["probability"], abs=1e-4)


def test_labels_are_those_of_the_predictor(exported, pictures, capsys):
    expected = printed(capsys, "predict", "--pretrained", NAME, *pictures, "--top", "2")
    check_same(printed(capsys, "predict", exported, *pictures, "--top", "2"), expected)
    converted = ("predict", "--pretrained", NAME, *pictures, "--runtime", "onnx", "--top", "2")
    check_same(printed(capsys, *converted), expected)


def test_normalised_images_with_channels_first(exported, pictures, capsys, tmp_path):
    path = str(tmp_path / "floats.onnx")
    options = ["--images", "float32", "--layout", "NCHW"]
    assert main(["export", "--pretrained", NAME, path, *options]) == 0
    capsys.readouterr()
    expected = printed(capsys, "predict", exported, *pictures)
    check_same(printed(capsys, "predict", path, *pictures), expected)


def test_it_starts_without_jax(exported, pictures):
    code = (
        "import sys; from mlg_jax.cli import main; status = main(sys.argv[1:]);"
        "assert not {'jax', 'flax'} & set(sys.modules); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "predict", exported, pictures[0], "--top", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "airplane" in done.stdout


def test_bench_times_both_runtimes(capsys):
    arguments = ("bench", "--pretrained", NAME, "--batch", "2", "--runs", "2")
    result = printed(capsys, *arguments)
    other = result["onnx_runtime"]
    assert other["file_bytes"] > result["file_bytes"]
    for row in (*result["batches"], *other["batches"]):
        assert row["batch_size"] == 2 and row["p50_seconds"] > 0
    assert main(list(arguments)) == 0
    assert "ONNX Runtime\n" in capsys.readouterr().out


def without_manifest(path, exported):
    model = onnx.load(exported)
    del model.metadata_props[:]
    onnx.save(model, path)


def text(path, exported):
    path.write_text("no model")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "make, message",
    [
        (text, "must be an ONNX model; "),
        (without_manifest, "must be written by `mlg export`; it has no manifest."),
        (lambda path, exported: None, "There is no file"),
    ],
)
def test_other_files_are_refused(make, message, exported, pictures, capsys, tmp_path):
    path = tmp_path / "bad.onnx"
    make(path, exported)
    assert main(["predict", str(path), pictures[0]]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.bad_input
def test_a_missing_picture_is_named(exported, capsys, tmp_path):
    assert main(["predict", exported, str(tmp_path / "none.png")]) == 2
    assert "none.png" in capsys.readouterr().err
