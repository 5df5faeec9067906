"""`mlg compress`: from a teacher's checkpoint to a packed file within its budget."""

import json

import jax
import numpy as np
import optax
import PIL.Image
import pytest

import mlg_jax
from mlg_jax.cli import main
from mlg_jax.config import parse_config, to_json
from mlg_jax.train import Checkpointer, bind_work_dir, create_state
from tests.engine import _trained

PLAIN = {"generation": None, "weight_bits": None, "activation_bits": None}
LOOP = {"train": {"num_epochs": 1}}
CONFIG = {
    "data": {
        "name": "synthetic",
        "synthetic": {"num_classes": 4, "num_train": 80, "num_test": 8},
        "num_validation": 16,
        "batch_size": 16,
    },
    "model": {"name": "tiny", "width": 0.25},
    "generation": {"base_in": 2, "base_out": 4},
    "teacher": LOOP,
    "student": LOOP,
}


@pytest.fixture(scope="module")
def work_dir(tiny, tmp_path_factory):
    """A work directory as `launch.py` leaves it after training the teacher."""
    directory = tmp_path_factory.mktemp("run")
    bind_work_dir(directory, to_json(parse_config(CONFIG)))
    _, variables = _trained.trained(tiny, size=32, **PLAIN)
    state = create_state(
        params=variables["params"],
        model_state={"batch_stats": variables["batch_stats"]},
        optimizer=optax.sgd(0.1),
        key=jax.random.key(0),
    )
    with Checkpointer(directory / "teacher" / "checkpoints") as checkpoints:
        checkpoints.save(state, meta={}, score=0.5)
    return directory


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    """A packed file of a network with ordinary kernels, and a directory of images for it."""
    directory = tmp_path_factory.mktemp("plain")
    model, variables = _trained.trained(tiny, **PLAIN)
    path = directory / "plain.mlg"
    _trained.saved(path, model, variables)
    for index, pixels in enumerate(_trained.pixels(40)):
        folder = directory / "images" / f"part{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(folder / f"{index}.png")
    return path, directory / "images"


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--distill-epochs", "2"]])
def test_it_writes_a_file_within_the_budget(work_dir, options, tmp_path, capsys):
    path = tmp_path / "small.mlg"
    given = work_dir / "teacher" if options else work_dir
    command = ["compress", str(given), "--target-kb", "6", "--images", "24", "--json", *options]
    assert main([*command, "--output", str(path)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["file_bytes"] == path.stat().st_size <= 6 * 1024
    predictor = mlg_jax.load_packed(path)
    assert predictor.spec.weight_bits == 8 and len(predictor.spec.generation) == 6
    assert set(predictor.manifest["metrics"]) == {
        "validation_accuracy",
        "validation_accuracy_before",
    }
    assert predictor.logits(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 4)
    assert sum(row["kb"] for row in result["layers"]) < result["weights_kb"]


def test_a_packed_file_and_a_directory_of_images(plain, tmp_path, capsys):
    path, images = plain
    output = tmp_path / "small.mlg"
    command = ["compress", str(path), "--data", str(images), "--target-kb", "6", "--images", "30"]
    assert main([*command, "--output", str(output), "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert 5.8 * 1024 < result["file_bytes"] == output.stat().st_size <= 6 * 1024
    assert captured.err.startswith("measuring 6 layers on 30 images\nmeasured layer 1 of 6, ")
    assert captured.err.endswith("0 s left\n")
    small, large = mlg_jax.load_packed(output), mlg_jax.load_packed(path)
    assert small.preprocessing == large.preprocessing and small.class_names == large.class_names
    order = np.random.default_rng(0).permutation(40)[30:]
    names = sorted(images.rglob("*.png"))
    held_out = small.preprocessing.read([names[i] for i in order])
    same = np.argmax(small(held_out), 1) == np.argmax(large(held_out), 1)
    assert result["agreement"] == pytest.approx(np.mean(same))


@pytest.mark.slow
def test_a_file_of_pytorch(plain, tmp_path, capsys):
    path, torch, output = plain[0], tmp_path / "net.safetensors", tmp_path / "small.mlg"
    model = mlg_jax.create_model("resnet10", num_classes=4, width=0.125, stem="imagenet")
    variables = _trained.trained("resnet10", width=0.125, stem="imagenet", **PLAIN)[1]
    mlg_jax.save_packed(path.parent / "resnet.mlg", model, variables)
    assert main(["export", str(path.parent / "resnet.mlg"), str(torch)]) == 0
    options = ["--model", "resnet10", "--width", "0.125", "--image-size", "32", "--images", "32"]
    command = ["compress", str(torch), "--data", str(plain[1]), "--target-kb", "20", *options]
    assert main([*command, "--output", str(output)]) == 0
    assert output.stat().st_size <= 20 * 1024
    found = mlg_jax.load_packed(output).preprocessing
    assert found.resize == "crop_875_bilinear" and found.mean[0] == 0.485
    assert "agreement" in capsys.readouterr().out


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{plain}"], "`--data` must be a directory with images; only a work directory has"),
        (["{plain}", "--data", "{empty}"], "`--data` must be a directory with images below it"),
        (["{plain}", "--model", "resnet18"], "`--model` must be MODULE:NAME or absent for what"),
        (["x.pth"], "`--model` must name the architecture of x.pth, one of ["),
        (["{missing}"], "SOURCE must be a packed model, a PyTorch file, a work directory"),
    ],
)
def test_sources_that_are_none(plain, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    names = {"plain": plain[0], "empty": tmp_path / "empty", "missing": tmp_path / "missing"}
    given = [argument.format(**names) for argument in arguments]
    assert main(["compress", *given, "--target-kb", "9"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.bad_input
def test_a_network_with_quantised_activations(path, plain, capsys):
    command = ["compress", str(path), "--data", str(plain[1]), "--target-kb", "9"]
    assert main(command) == 2
    assert "must hold a network without quantised activations; " in capsys.readouterr().err


@pytest.mark.bad_input
def test_a_target_out_of_reach(work_dir, tmp_path, capsys):
    path = tmp_path / "small.mlg"
    assert main(["compress", str(work_dir), "--target-kb", "0.5", "--output", str(path)]) == 2
    error = capsys.readouterr().err
    assert "`target_kb` must be at least" in error and "the smallest reachable" in error
    assert not path.exists()


@pytest.mark.bad_input
def test_checkpoints_that_are_none(work_dir, tmp_path, capsys):
    cases = {
        tmp_path / "nothing": "a work directory of launch.py or its teacher's checkpoints",
        work_dir / "student": "there is no such directory",
    }
    for path, message in cases.items():
        assert main(["compress", str(path), "--target-kb", "9"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options", [["--target-kb", "nan"], ["--images", "0"], ["--distill-epochs", "-1"]]
)
def test_bad_arguments(work_dir, options, capsys):
    given = ["compress", str(work_dir), *([] if "--target-kb" in options else ["--target-kb", "9"])]
    try:
        status = main([*given, *options])
    except SystemExit as stop:
        status = stop.code
    assert status == 2 and "error: " in capsys.readouterr().err
