"""What an experiment is started for: its stages in order, alone in its work directory."""

from pathlib import Path
from typing import Any

from mlg_jax._checks import check_choice
from mlg_jax.config import ExperimentConfig, to_json
from mlg_jax.experiment._run import _Experiment
from mlg_jax.train import Interruptible, check_work_dir, lock_work_dir

MODES = ("train", "eval", "export", "profile")


def run_experiment(
    config: ExperimentConfig, work_dir: str | Path, *, mode: str = "train"
) -> dict[str, Any]:
    """Runs an experiment, or what is left of it, in its work directory.

    Stage 0 trains the teacher (or takes it from `teacher.checkpoint`), stage 1 projects its
    kernels, stage 2 trains the student; then the test set is read, once, and the report and the
    packed student are written.

    Args:
        config: the experiment.
        work_dir: holds `teacher/`, `projection/`, `student/`, `report/` and `packed/`.
        mode: `train`; `eval` trains nothing and reports on what is there; `export` only writes the
            packed student again, with what it reaches on the validation set; `profile` measures the
            memory of both networks' training, of whatever is there, and writes `profile/` alone.

    Returns:
        The content of `report/summary.json`; of `profile/profile.json` after `profile`; after
        `export` `{"packed": {"file", "bytes"}}`.

    Raises:
        ValueError: another mode.
        WorkDirError: the work directory of another experiment, or of a run that still lives.
        CheckpointError: a checkpoint of another model, a damaged one, none where one is needed.
        ConfigError: after `export`, a factor that its bits cannot hold.
        TrainingInterrupted: SIGTERM or SIGINT, in whatever stage; what could be saved was.
        NonFiniteError: as from `mlg_jax.train.train`.
    """
    check_choice("mode", mode, MODES)
    directory = Path(work_dir).absolute()
    if mode == "profile":  # changes nothing that a training in the same directory reads or writes
        with Interruptible("the profile"):
            return _Experiment(config, directory).profile()
    with Interruptible("the start"), lock_work_dir(directory):
        check_work_dir(directory, to_json(config))
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
