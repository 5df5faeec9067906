"""The modes of an experiment, and the stages that they run in its work directory."""

from pathlib import Path
from typing import Any

from mlg_jax._checks import check_choice
from mlg_jax.config import ExperimentConfig
from mlg_jax.experiment._run import _Experiment
from mlg_jax.train import Interruptible, check_work_dir, lock_work_dir

MODES = ("train", "eval", "export", "profile")


def run_experiment(
    config: ExperimentConfig, work_dir: str | Path, *, mode: str = "train"
) -> dict[str, Any]:
    """Runs or resumes an experiment in its work directory.

    Stage 0 trains the teacher (or loads it from `teacher.checkpoint`), stage 1 projects its
    kernels, stage 2 trains the student. Finally the networks are evaluated on the test set, and
    the report and the packed student are written.

    Args:
        config: the experiment.
        work_dir: receives `teacher/`, `projection/`, `student/`, `report/` and `packed/`.
        mode: `train` runs all stages; `eval` only evaluates and reports; `export` only writes the
            packed student again, with its validation metrics; `profile` measures the memory of
            training both networks, from the latest variables, and only writes `profile/`.

    Returns:
        The content of `report/summary.json`; for `profile` that of `profile/profile.json`; for
        `export` `{"packed": {"file": ..., "bytes": ...}}`.

    Raises:
        ValueError: `mode` is unknown.
        WorkDirError: the work directory belongs to another experiment or is in use by another run.
        CheckpointError: a checkpoint is missing, damaged or of another model.
        ConfigError: the configuration does not fit the data or the devices; or, for `export`, a
            factor cannot be represented in its bits.
        TrainingInterrupted: SIGTERM or SIGINT arrived; the state has been saved where possible.
        NonFiniteError: as `mlg_jax.train.train`.
    """
    check_choice("mode", mode, MODES)
    directory = Path(work_dir).absolute()
    if mode == "profile":  # does not affect a training in the same directory: no lock
        with Interruptible("the profile"):
            return _Experiment(config, directory).profile()
    with Interruptible("the start"), lock_work_dir(directory):
        check_work_dir(directory, config.determining_json)
        run = _Experiment(config, directory)
        run.claim()
        return _run_stages(run, mode)


def _run_stages(run: _Experiment, mode: str) -> dict[str, Any]:
    if mode == "export":
        with Interruptible("the export"):
            return run.export()
    stages = {
        "the teacher's stage": run.train_teacher,
        "the projection": run.project,
        "the student's stage": run.train_student,
    }
    for name, stage in stages.items() if mode == "train" else ():
        with Interruptible(name):
            stage()
    with Interruptible("the report"):
        return run.report()
