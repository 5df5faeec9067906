"""Signals, locks and damage between the stages of an experiment."""

import functools
import logging
import os
import shutil
import signal

import numpy as np
import pytest

from mlg_jax.config import ConfigError, parse_config
from mlg_jax.experiment import _export, _run, main, run_experiment
from mlg_jax.train import CheckpointError, TrainingInterrupted, WorkDirError, lock_work_dir
from tests.experiment.test_run import settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def short():
    """One step per epoch, one epoch per stage."""
    raw = settings()
    raw["data"]["synthetic"]["num_train"] = 64
    for stage in ("teacher", "student"):
        raw[stage]["train"] = {**raw[stage]["train"], "num_epochs": 1}
    raw["projection"]["num_steps"] = 20
    return raw


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("short")
    return directory, run_experiment(parse_config(short()), directory)


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "copy")


def shoot_before(function, number):
    @functools.wraps(function)
    def shooting(*args, **kwargs):
        os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    return shooting


@pytest.mark.parametrize(
    ("owner", "name", "message", "removed", "mode"),
    [
        (_run, "load_data", "the start", [], "train"),  # also computes the statistics
        (_run._Experiment, "_teacher_start", "the teacher's stage", ["teacher"], "train"),
        (_run, "project_model", "the projection", ["projection"], "train"),
        (_run, "load_projection", "the student's stage", ["student"], "train"),
        (_run, "evaluate", "the report", ["report"], "eval"),
        (_run, "write_report", "the report", ["report"], "train"),
        (_export, "save_packed", "the export", ["packed"], "export"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_every_stage_ends_with_status_75(
    copy, monkeypatch, owner, name, message, removed, mode, number
):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(owner, name, shoot_before(getattr(owner, name), number))
    for stage in removed:
        shutil.rmtree(copy / stage)
    with pytest.raises(TrainingInterrupted, match=f"Interrupted during {message}; ") as caught:
        run_experiment(parse_config(short()), copy, mode=mode)
    assert caught.value.exit_code == 75
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    with lock_work_dir(copy):  # the lock has been released
        pass


def test_what_an_interrupted_experiment_has_is_used(finished, copy, monkeypatch):
    """Interrupted before the student's stage and in the report, it gives the same summary."""
    directory, summary = finished
    for stage in ("projection", "student", "report", "packed"):
        shutil.rmtree(copy / stage)
    for name in ("load_projection", "write_report"):
        with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted):
            patch.setattr(_run, name, shoot_before(getattr(_run, name), signal.SIGTERM))
            run_experiment(parse_config(short()), copy)
    assert run_experiment(parse_config(short()), copy) == summary
    packed = "packed/student.mlg"
    assert (copy / packed).read_bytes() == (directory / packed).read_bytes()


def test_a_damaged_projection_is_computed_again(finished, copy, caplog):
    directory, summary = finished
    path = copy / "projection/projected.npz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="--mode=train computes it again"):
        run_experiment(parse_config(short()), copy, mode="eval")
    with caplog.at_level(logging.WARNING, "mlg_jax"):
        assert run_experiment(parse_config(short()), copy) == summary
    assert "computed again" in caplog.text
    with (
        np.load(directory / "projection/projected.npz") as left,
        np.load(copy / "projection/projected.npz") as right,
    ):
        assert all(np.array_equal(left[key], right[key]) for key in left.files)


def test_a_damaged_student_is_reported(copy):
    """The newest checkpoint is the only one, so nothing can replace it."""
    (directory,) = (copy / "student/checkpoints").iterdir()
    (directory / "metrics/metrics").write_text("")
    for mode, message in (("eval", "no undamaged one"), ("train", "Remove the directory")):
        with pytest.raises(CheckpointError, match=message):
            run_experiment(parse_config(short()), copy, mode=mode)


@pytest.mark.bad_input
@pytest.mark.parametrize("mode", ["train", "eval", "export"])
def test_a_second_start_is_refused(copy, mode):
    with lock_work_dir(copy), pytest.raises(WorkDirError, match="in use by process"):
        run_experiment(parse_config(short()), copy, mode=mode)


@pytest.mark.bad_input
def test_a_directory_is_bound_only_once_the_data_has_opened(tmp_path):
    """A run with a wrong path does not bind the directory."""
    wrong = short()
    wrong["data"] = {**wrong["data"], "name": "npz", "data_dir": str(tmp_path / "typo")}
    del wrong["data"]["synthetic"]
    with pytest.raises(ConfigError, match="typo"):
        run_experiment(parse_config(wrong), tmp_path / "run")
    assert not (tmp_path / "run/fingerprint.json").exists()
    _run._Experiment(parse_config(short()), tmp_path / "run").claim()
    with pytest.raises(WorkDirError, match="another experiment: `data.data_dir`"):
        run_experiment(parse_config(wrong), tmp_path / "run")


@pytest.mark.bad_input
def test_a_directory_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/run"):
        run_experiment(parse_config(short()), tmp_path / "file/run")


def test_interrupted_is_status_75(copy, monkeypatch, capsys):
    monkeypatch.setattr(_run, "load_data", shoot_before(_run.load_data, signal.SIGINT))
    config = copy / "config.py"
    config.write_text(
        "from tests.experiment.test_interrupts import short\n\n\ndef get_config():\n"
        "    return short()\n"
    )
    monkeypatch.setattr("mlg_jax.experiment._launch.enable_compilation_cache", lambda _: None)
    assert main([f"--config={config}", f"--workdir={copy}"]) == 75
    error = capsys.readouterr().err
    assert "Interrupted during the start" in error and "Run the same command" in error
