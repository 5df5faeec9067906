"""The pipeline on synthetic data, end to end: stages, report, resumption, refusals."""

import json
import logging

import flax.traverse_util
import numpy as np
import pytest

from mlg_jax import load_packed
from mlg_jax.config import parse_config
from mlg_jax.data import DataSpec, SyntheticSpec, load_dataset
from mlg_jax.experiment import _run, main, run_experiment
from mlg_jax.models.cifar_cnn import whitening_kernel
from mlg_jax.train import CheckpointError, WorkDirError, load_variables, read_metrics

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def settings(**student):
    loop = {
        "num_epochs": 3,
        "optimizer": {"name": "adamw"},
        "schedule": {"name": "cosine", "learning_rate": 5e-3},
        "log_every_steps": 4,
    }
    data = {
        "name": "synthetic",
        "image_size": 8,
        "num_validation": 32,
        "batch_size": 32,
        "eval_batch_size": 64,
        "augment": {"crop_padding": 1, "horizontal_flip": True},
        "synthetic": {"num_classes": 4, "num_train": 288, "num_test": 100},
    }
    return {
        "data": data,
        "model": {"name": "tiny", "width": 0.25},
        "generation": {
            "base_in": 2,
            "base_out": 6,
            "basis_bits": 4,
            "coeff_in_bits": 6,
            "coeff_out_bits": 4,
            "weight_bits": 8,
            "implementation": "generate",  # compiles fastest; the others have their own tests
        },
        "teacher": {"train": loop},
        "projection": {"num_steps": 40},
        "student": {"train": loop, "penalty": 0.01, **student},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole experiment: its directory and summary."""
    directory = tmp_path_factory.mktemp("experiment")
    return directory, run_experiment(parse_config(settings()), directory)


def test_summary_has_the_promised_keys(finished):
    directory, summary = finished
    assert summary == json.loads((directory / "report/summary.json").read_text())
    for name in ("teacher", "projected", "student"):
        assert 0.0 <= summary[name]["test_accuracy"] <= 1.0
    assert summary["teacher"]["test_accuracy"] > 0.9  # the patterns are easy; chance is 0.25
    assert summary["student"]["test_accuracy"] > summary["projected"]["test_accuracy"]
    assert summary["size"]["num_parameters"] < 0.3 * summary["size"]["num_dense_parameters"]
    assert summary["size"]["ratio"] == summary["size"]["kb"] / summary["size"]["dense_kb"]
    assert summary["config"]["generation"]["base_out"] == 6


def test_report_shows_tables_and_pictures(finished):
    directory, summary = finished
    text = (directory / "report/report.md").read_text()
    assert f"| student | {summary['student']['test_accuracy']:.2%} |" in text
    assert "| stage1_block1/conv1 | conv |" in text
    for name in ("curves.png", "sizes.png"):
        assert (directory / "report" / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in text


def test_losses_fall_and_penalty_is_logged(finished):
    directory, _ = finished
    for stage in ("teacher", "student"):
        lines = [r for r in read_metrics(directory / stage) if r["kind"] == "train"]
        assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["penalty"] > 0


def test_every_factor_trains_in_stage_two(finished):
    directory, _ = finished
    with np.load(directory / "projection/projected.npz") as archive:
        start = {n: archive[n] for n in archive.files if n.startswith("params/")}
    params, _, _ = load_variables(directory / "student/checkpoints", which="latest")
    after = flax.traverse_util.flatten_dict(params, sep="/")
    factors = [n for n in start if n.endswith(("basis", "coeff_in", "coeff_out"))]
    assert len({n.rsplit("/", 1)[1] for n in factors}) == 3
    for name in factors:
        assert np.mean(start[name] != after[name.removeprefix("params/")]) > 0.9, name


def test_a_teacher_of_another_network_and_an_augmented_evaluation(tmp_path):
    tree = settings(start="random")
    for stage in ("teacher", "student"):
        tree[stage] = {**tree[stage], "train": {**tree[stage]["train"], "num_epochs": 1}}
    tree["teacher"]["model"] = {"name": "tiny", "width": 0.5}
    tree["report"] = {"augmented": True}
    found = run_experiment(parse_config(tree), tmp_path)
    assert "projected" not in found
    for name in ("teacher", "student"):
        assert {"test_accuracy", "test_accuracy_augmented"} <= set(found[name])
    params, _, _ = load_variables(tmp_path / "teacher/checkpoints", which="latest")
    assert params["classifier"]["kernel"].shape[0] == 64  # 128 channels, half as many
    report = (tmp_path / "report/report.md").read_text()
    assert "| network | test accuracy | test loss | with flips and shifts |" in report


def test_networks_take_initial_values_from_images(tmp_path):
    tree = settings()
    tree["data"] = {**tree["data"], "image_size": 32}
    tree["model"] = {"name": "cifar_cnn", "width": 0.1}
    tree["generation"] = {**tree["generation"], "layers": {"whiten": 32}}
    experiment = _run._Experiment(parse_config(tree), tmp_path)
    images = load_dataset(parse_config(tree).data).normalized_images(5000)
    expected = whitening_kernel(images)
    for model in (experiment._teacher, experiment._make_student(implementation="auto")):
        kernel = experiment._fresh(model)["params"]["whiten"]["kernel"]
        np.testing.assert_allclose(kernel, expected, atol=1e-5)


def test_the_projection_sees_training_images_if_asked(finished, tmp_path, caplog):
    directory, summary = finished
    tree = settings()
    tree["teacher"] = {**tree["teacher"], "checkpoint": str(directory / "teacher/checkpoints")}
    tree["student"]["train"] = {**tree["student"]["train"], "num_epochs": 1}
    tree["projection"] = {"metric": "data", "num_steps": 50}
    with caplog.at_level(logging.INFO, "mlg_jax.experiment"):
        found = run_experiment(parse_config(tree), tmp_path)
    assert found["teacher"] == summary["teacher"]
    assert found["projected"]["test_loss"] < summary["projected"]["test_loss"]
    errors = json.loads((tmp_path / "projection/projection.json").read_text())["errors"]
    assert sum("projection: layer" in m for m in caplog.messages) == len(errors) > 0
    assert all(0 < error < 1 for error in errors.values())


def test_a_finished_experiment_is_only_reported_again(finished, caplog):
    directory, summary = finished
    with caplog.at_level(logging.INFO, "mlg_jax.experiment"):
        again = run_experiment(parse_config(settings()), directory, mode="eval")
    assert again == summary
    assert not any("projection: step" in m for m in caplog.messages)


def test_the_packed_student_serves_what_was_reported(finished):
    directory, summary = finished
    path = directory / summary["packed"]["file"]
    assert summary["packed"]["bytes"] == path.stat().st_size
    report = (directory / "report/report.md").read_text()
    assert f"Packed: `packed/student.mlg`, {path.stat().st_size:,} bytes." in report
    predictor = load_packed(path, batch_sizes=(64,))
    assert predictor.manifest["metrics"] == summary["student"]
    assert len(predictor.class_names) == 4
    correct = []
    for batch in load_dataset(parse_config(settings()).data).test_batches():
        found = predictor(np.asarray(batch["image"])).argmax(-1)
        correct += (found == batch["label"])[np.asarray(batch["mask"])].tolist()
    assert len(correct) == 100
    assert np.mean(correct) == pytest.approx(summary["student"]["test_accuracy"], abs=0.01)


def test_export_writes_the_packed_student_anew(finished, capsys):
    directory, summary = finished
    path = directory / "packed/student.mlg"
    served = load_packed(path)
    path.unlink()
    found = run_experiment(parse_config(settings()), directory, mode="export")
    assert found["packed"] == {"file": "packed/student.mlg", "bytes": path.stat().st_size}
    again = load_packed(path)
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(again(images), served(images))
    metrics = again.manifest["metrics"]
    assert set(metrics) == {"validation_accuracy", "validation_loss"}
    assert metrics["validation_accuracy"] > 0.25


@pytest.mark.bad_input
def test_export_needs_a_student(tmp_path):
    with pytest.raises(CheckpointError):
        run_experiment(parse_config(settings()), tmp_path, mode="export")


def test_an_interrupted_projection_gives_the_same_bits(finished, tmp_path, monkeypatch):
    directory, _ = finished
    checkpoint = str(directory / "teacher/checkpoints")
    raw = settings()
    raw["teacher"]["checkpoint"] = checkpoint
    raw["projection"]["num_steps"] = 240
    config = parse_config(raw)

    def project(work_dir):
        run = _run._Experiment(config, work_dir)
        run.project()
        with np.load(work_dir / "projection/projected.npz") as archive:
            return {name: archive[name] for name in archive.files}

    whole = project(tmp_path / "whole")
    real_save = _run.ProjectionCheckpoint.save

    def save_and_die(self, leaves, history):
        real_save(self, leaves, history)
        raise KeyboardInterrupt

    monkeypatch.setattr(_run.ProjectionCheckpoint, "save", save_and_die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            project(tmp_path / "cut")
    monkeypatch.setattr(_run.ProjectionCheckpoint, "save", real_save)
    resumed = project(tmp_path / "cut")
    assert whole.keys() == resumed.keys()
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "cut/projection/state.npz").exists()


def test_augmentation_follows_from_epoch_and_step():
    import jax

    from mlg_jax.experiment._tasks import Batches

    spec = parse_config(settings()).data
    assert spec == DataSpec(
        name="synthetic",
        image_size=8,
        num_validation=32,
        batch_size=32,
        eval_batch_size=64,
        augment=spec.augment,
        synthetic=SyntheticSpec(num_classes=4, num_train=288, num_test=100),
    )
    batches = Batches(load_dataset(spec), jax.random.key(0))
    whole, rest = list(batches.train(1, 0)), list(batches.train(1, 5))
    assert len(whole) == 8 and len(rest) == 3
    for left, right in zip(whole[5:], rest, strict=True):
        assert np.array_equal(left["image"], right["image"])
    other = next(iter(batches.train(2, 0)))
    assert not np.array_equal(other["image"], whole[0]["image"])


@pytest.mark.bad_input
def test_work_directory_of_another_experiment(finished):
    directory, _ = finished
    with pytest.raises(WorkDirError, match=r"another experiment: `student.beta` was 0.9, now 0.5"):
        run_experiment(parse_config(settings(beta=0.5)), directory)


@pytest.mark.bad_input
def test_teacher_of_another_model(finished, tmp_path):
    directory, _ = finished
    raw = settings()
    raw["teacher"]["checkpoint"] = str(directory / "teacher/checkpoints")
    raw["model"]["width"] = 0.5
    with pytest.raises(
        CheckpointError, match=r"belongs to another model: batch_stats/.* is \(16,\) there"
    ):
        run_experiment(parse_config(raw), tmp_path)
    raw["teacher"]["checkpoint"] = str(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="No checkpoint in .*nothing: there is no such dir"):
        run_experiment(parse_config(raw), tmp_path / "other")


@pytest.mark.bad_input
def test_unknown_mode(tmp_path):
    message = r"`mode` must be one of \['eval', 'export', 'profile', 'train'\]; got 'test'"
    with pytest.raises(ValueError, match=message):
        run_experiment(parse_config(settings()), tmp_path, mode="test")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "override, message",
    [
        ("data.name=cifar10", "prepare"),
        ("studnet.penalty=1", "config.studnet does not exist"),
    ],
)
def test_command_line_stops_with_one_line(override, message, tmp_path, capsys):
    status = main(
        [
            "--config=configs/quickstart.py",
            f"--workdir={tmp_path}",
            f"--config.data.data_dir={tmp_path}",
            "--config.data.download=false",
            f"--config.{override}",
        ]
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and error.startswith("error: ") and message in error
