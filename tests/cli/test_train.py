"""`mlg train`: from a directory of images to a packed model, from scratch or from another model."""

import argparse
import json

import numpy as np
import PIL.Image
import pytest

import mlg_jax
from mlg_jax.cli import _train, main
from mlg_jax.config import parse_config

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of noisy images of one colour each, 40 x 48 pixels."""
    directory, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (directory / name).mkdir()
        for index in range(20):
            noise = random.normal(0, 30, (40, 48, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(directory / name / f"{index}.png")
    return directory


def start_of(folder, *options):
    parser = argparse.ArgumentParser()
    _train.add_arguments(parser)
    args = parser.parse_args(["--data", str(folder), *options])
    paths = [str(path) for path in sorted(folder.rglob("*.png"))]
    start = _train._start(args, paths)
    return start, parse_config(_train._config(args, start, len(paths)))


def test_the_network_follows_images_and_device(folder):
    start, config = start_of(folder)
    assert start.image_size == 32  # the largest of the usual sizes within 40 pixels
    assert (config.model.name, config.model.stem, config.model.width) == ("resnet10", "cifar", 0.5)
    assert config.data.batch_size == 4 and config.generation.base_out == 22
    assert config.data.augment.crop_padding == 4 and config.data.augment.horizontal_flip is True
    start, config = start_of(folder, "--image-size", "128", "--model", "resnet18", "--no-flip")
    assert (config.model.stem, config.model.width, config.data.image_size) == ("imagenet", 1.0, 128)
    assert config.data.augment.min_area and config.data.augment.horizontal_flip is False


def test_a_packed_start_says_what_it_is(folder):
    start, config = start_of(folder, "--pretrained", "cifar10_cnn")
    assert config.model.name == "cifar_cnn" and start.image_size == 32
    assert config.data.mean == mlg_jax.load_pretrained("cifar10_cnn").preprocessing.mean
    assert config.teacher.init_checkpoint.endswith("cifar10_cnn.mlg")


def test_from_images_to_a_model(folder, tiny, tmp_path, capsys):
    output, work_dir = tmp_path / "colours.mlg", tmp_path / "run"
    command = ["train", "--data", str(folder), "--workdir", str(work_dir), "--epochs", "6"]
    command += ["--model", tiny, "--width", "0.25", "--output", str(output)]
    assert main(command) == 0
    assert "student" in capsys.readouterr().out
    predictor = mlg_jax.load_packed(output)
    assert predictor.class_names == tuple(COLOURS) and predictor.spec.generation is not None
    image = str(folder / "green" / "0.png")
    assert main(["predict", str(output), image, "--json", "--top", "1"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["labels"][0]["name"] == "green"
    before = output.read_bytes()
    output.unlink()
    assert main(command) == 0 and output.read_bytes() == before  # nothing is trained again


@pytest.mark.slow
def test_from_a_trained_network(folder, tmp_path, capsys):
    output = tmp_path / "colours.mlg"
    command = ["train", "--data", str(folder), "--workdir", str(tmp_path / "run")]
    command += ["--pretrained", "cifar10_cnn", "--epochs", "3", "--output", str(output)]
    assert main(command) == 0
    predictor = mlg_jax.load_packed(output)
    assert predictor.spec.name == "cifar_cnn" and predictor.spec.num_classes == 3
    paths = [folder / name / "1.png" for name in COLOURS]
    found = predictor.labels(predictor.preprocessing.read(paths))
    assert [labels[0].name for labels in found] == list(COLOURS)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options, message",
    [
        (["--pretrained", "cifar10_cnn", "--init", "x.mlg"], "Give --init or --pretrained; got"),
        (["--init", "x.pth"], "`--model` must name the architecture of x.pth; got none."),
        (
            ["--pretrained", "cifar10_cnn", "--model", "resnet18"],
            "`--model` must be absent or cifar_cnn",
        ),
        (["--epochs", "1", "--seed", "-1"], "`seed` must be an integer in"),
        (["--init", "missing.mlg"], "missing.mlg"),
        (["--width", "0"], "`width` must be"),
    ],
)
def test_bad_options(folder, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", str(folder), *options]) == 2
    (error,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("error: ")]
    assert message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
@pytest.mark.parametrize("command", [["train"], ["compress", "x.mlg", "--target-kb", "9"]])
def test_an_output_that_could_not_be_written(folder, tmp_path, capsys, command):
    """Is reported before the work."""
    output = str(tmp_path / "missing" / "model.mlg")
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--data", str(folder), "--output", output])
    assert "--output: must be a file in a directory that exists; got" in capsys.readouterr().err


@pytest.mark.bad_input
def test_a_directory_without_images(tmp_path, capsys):
    assert main(["train", "--data", str(tmp_path)]) == 2
    assert "`--data` must be a directory with images below it" in capsys.readouterr().err
