"""`mlg import` and `mlg export`: round trips, and their output."""

import json

import jax
import numpy as np
import PIL.Image
import pytest

import mlg_jax
from mlg_jax.cli import main
from mlg_jax.export import write_torch
from tests._tolerances import CONTRACTION, relative_error
from tests.engine import _trained
from tests.export import _torch_networks as networks

OPTIONS = ["--model", "resnet10", "--stem", "imagenet", "--width", "0.0625"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A state dict on disk, with images and the logits expected for them."""
    net, rng = networks.Network(), np.random.default_rng(1)
    x = rng.normal(size=(2, 3, 33, 33)).astype(np.float32)
    logits = networks.resnet(net, x, 4, sizes=(1, 1, 1, 1))
    path = tmp_path_factory.mktemp("torch") / "resnet.safetensors"
    write_torch(path, {k: v for k, v in net.state.items() if "num_batches" not in k})
    return path, x.transpose(0, 2, 3, 1), logits


def test_there_and_back(source, tmp_path, capsys):
    path, images, logits = source
    packed, names = tmp_path / "model.mlg", tmp_path / "names.txt"
    names.write_text("cat\ndog\neel\nfox\n")
    pixels = ["--mean", ".5", ".4", ".3", "--std", ".2", ".2", ".1", "--image-size", "33"]
    arguments = [str(path), str(packed), *OPTIONS, "--class-names", str(names), *pixels]
    assert main(["import", *arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {"file": str(packed), "file_bytes": packed.stat().st_size, "num_classes": 4}
    predictor = mlg_jax.load_packed(packed)
    assert predictor.class_names == ("cat", "dog", "eel", "fox")
    assert predictor.preprocessing.image_size == (33, 33)
    assert predictor.preprocessing.std == (0.2, 0.2, 0.1)
    assert relative_error(predictor(images), logits) < CONTRACTION
    back = tmp_path / "back.safetensors"
    assert main(["export", str(packed), str(back)]) == 0
    assert capsys.readouterr().out == f"{back.stat().st_size:,} bytes\n"
    assert back.read_bytes() == path.read_bytes()


def test_preprocessing_of_torchvision_by_default(source, tmp_path, capsys):
    packed, image = tmp_path / "model.mlg", tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(image)
    assert main(["import", str(source[0]), str(packed), *OPTIONS, "--image-size", "56"]) == 0
    found = mlg_jax.load_packed(packed)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert (found.preprocessing.mean, found.preprocessing.std) == (mean, std)
    scaled = pixels[4:60, 12:68]  # the shorter side is 56 / .875 = 64 already
    np.testing.assert_array_equal(found.preprocessing.read([image])[0], scaled)
    capsys.readouterr()
    assert main(["predict", str(packed), str(image), "--json", "--top", "1"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    expected = found.probabilities((scaled[None] / 255 - mean) / np.float32(std)).max()
    assert row["labels"][0]["probability"] == pytest.approx(expected, rel=1e-4)
    onnx = tmp_path / "model.onnx"
    assert main(["export", str(packed), str(onnx)]) == 0
    capsys.readouterr()
    assert main(["predict", str(onnx), str(image), "--json", "--top", "1"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["labels"][0]["probability"] == pytest.approx(expected, rel=1e-4)


def test_artefacts(path, tmp_path, capsys):
    pytest.importorskip("flatbuffers", reason="needs mlg-jax[export]")
    output = tmp_path / "model.stablehlo"
    arguments = ["export", str(path), str(output), "--images", "uint8", "--platforms", "cpu"]
    assert main([*arguments, "--residency", "packed", "--json"]) == 0
    data = output.read_bytes()
    assert json.loads(capsys.readouterr().out) == {"file": str(output), "file_bytes": len(data)}
    exported = jax.export.deserialize(bytearray(data))
    assert exported.platforms == ("cpu",) and exported.in_avals[0].dtype == np.uint8
    assert exported.in_avals[0].shape[1:] == _trained.images(1).shape[1:]


def test_onnx(path, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs mlg-jax[test]")
    output = tmp_path / "model.onnx"
    assert main(["export", str(path), str(output), "--layout", "NCHW", "--images", "float32"]) == 0
    assert capsys.readouterr().out == f"{output.stat().st_size:,} bytes\n"
    images = _trained.images(2)
    session = onnxruntime.InferenceSession(str(output))
    (logits,) = session.run(None, {"images": np.ascontiguousarray(np.moveaxis(images, 3, 1))})
    assert relative_error(mlg_jax.load_packed(path)(images), logits) < CONTRACTION


def test_a_checkpoint_of_the_original_becomes_small(reference, tmp_path, capsys):
    numbers = reference("resnet18_2_44_3_6_3")
    state = {k: v for k, v in numbers.items() if k.startswith(("conv1", "bn1", "layer", "linear"))}
    path, packed = tmp_path / "original.safetensors", tmp_path / "model.mlg"
    write_torch(path, state)
    options = ["--stem", "cifar", "--generation", "2-44-3-6-3", "--weight-bits", "8"]
    assert main(["import", str(path), str(packed), "--model", "resnet18", *options]) == 0
    assert packed.stat().st_size <= 405 * 1024
    captured = capsys.readouterr()
    assert captured.out == f"{packed.stat().st_size:,} bytes, 10 classes\n"
    assert captured.err.startswith(f"note: {packed} takes normalised arrays only; ")
    spec = mlg_jax.load_packed(packed).spec
    assert spec.generation == mlg_jax.GenerationSpec.from_bits(2, 44, 3, 6, 3)
    assert (spec.weight_bits, spec.activation_bits, spec.stem) == (8, None, "cifar")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["import", "{torch}", "x.mlg", "--model", "resnet18"],
            "`state` must hold the model's arr",
        ),
        (
            ["import", "{torch}", "x.mlg", *OPTIONS[2:], "--model", "resnet34"],
            "use --model resnet10",
        ),
        (["import", "{packed}", "x.mlg", *OPTIONS], "`path` must end in one of"),
        (
            ["import", "{torch}", "x.mlg", *OPTIONS, "--mean", ".5"],
            "`--mean` must be 3 numbers, one per channel of the network's images; got 1.",
        ),
        (
            ["import", "{torch}", "x.mlg", *OPTIONS, "--mean", *"100", "--std", *"11"],
            "`--std` must be 3 numbers, one per channel of the network's images; got 2.",
        ),
        (
            [
                "import",
                "{torch}",
                "x.mlg",
                *("--model", "resnet10", "--stem", "cifar", "--image-size", "8"),
            ],
            "`--mean` must be 3 numbers, one per channel of the network's images; got none.",
        ),
        (
            ["import", "{torch}", "x.mlg", *OPTIONS, "--class-names", "{packed}"],
            "`--class-names` must be a UTF-8 text file; got",
        ),
        (["export", "{packed}", "x.pb"], "OUTPUT must end in one of ['.onnx', '.safetensors', '.s"),
        (["export", "{packed}", "x.safetensors"], "network without activation bits; got"),
        (["export", "{torch}", "x.stablehlo"], "`path` must be a packed model; got"),
    ],
)
def test_wrong_input_is_one_line(source, path, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main([a.format(torch=source[0], packed=path) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
@pytest.mark.parametrize("text", ["2", "2-44-3", "a-b", "2-44-3-6-99"])
def test_generation_is_two_or_five_numbers(capsys, text):
    with pytest.raises(SystemExit):
        main(["import", "a.pth", "b.mlg", *OPTIONS, "--generation", text])
    assert f"must be Bi-Bo or Bi-Bo-qb-qu-qv; got '{text}'." in capsys.readouterr().err


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--mean", "123.7", "argument --mean: must be numbers in [0, 1], black to white"),
        ("--mean", "nan", "argument --mean: must be numbers in [0, 1], black to white; got nan"),
        ("--std", "0", "argument --std: must be finite numbers > 0; got 0."),
        ("--std", "inf", "argument --std: must be finite numbers > 0; got inf."),
    ],
)
def test_numbers_of_pixels(capsys, option, value, message):
    with pytest.raises(SystemExit):
        main(["import", "a.pth", "b.mlg", *OPTIONS, option, value, value, value])
    assert message in capsys.readouterr().err
