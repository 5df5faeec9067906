"""An experiment killed at random moments ends with the results of an undisturbed one."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import time

import numpy as np
import pytest

from mlg_jax.train import TrainingInterrupted, read_metrics
from tests.experiment.test_hosts import CONFIG, launch
from tests.train.test_processes import finish

NUM_KILLS = 10
FREQUENT = CONFIG.replace(
    '["num_epochs"] = 1', ".update(num_epochs=4, checkpoint_every_steps=2)"
).replace('["num_steps"] = 20', '["num_steps"] = 900')
STAGES = ("teacher", "projection", "student", "report", "packed")
# The files that kills wait for in turn, and the maximum number of changes to wait for.
WATCHED = (
    (STAGES, 90),
    (("projection",), 6),
    (STAGES, 90),
    (("student",), 40),
    (("packed", "report"), 3),
)


def files(work_dir, stages=STAGES):
    """Names and modification times of the stages' files; some vanish while we look."""
    found = set()
    for stage in stages:
        for directory, _, names in os.walk(work_dir / stage):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    path = pathlib.Path(directory, name)
                    found.add((path, path.stat().st_mtime_ns))
    return found


def wait_for_changes(work_dir, process, stages, count):
    """Waits for `count` writes of files; most of these moments are within a save."""
    before = files(work_dir, stages)
    while process.poll() is None and count > 0:
        now = files(work_dir, stages)
        count -= now != before
        before = now
        time.sleep(0.002)


def results(work_dir):
    """All results of a run except its one measured time."""
    lines = {s: read_metrics(work_dir / s) for s in ("teacher", "student")}
    for line in (*lines["teacher"], *lines["student"]):
        line.pop("images_per_second", None)
    summary = json.loads((work_dir / "report/summary.json").read_text())
    return lines, summary, (work_dir / "packed/student.mlg").read_bytes()


def stage_reached(work_dir):
    """The stage that was last to write."""
    newest = max(files(work_dir), key=lambda entry: entry[1], default=None)
    return "start" if newest is None else newest[0].relative_to(work_dir).parts[0]


def is_within_a_save(work_dir):
    """Whether there is an unfinished checkpoint."""
    return any(work_dir.glob("*/checkpoints/*tmp*"))


@pytest.mark.slow
def test_kills_at_random_moments_change_no_bit(tmp_path):
    """SIGKILL and SIGTERM in turn, in every stage; a finished run is started over."""
    whole = tmp_path / "whole"
    returncode, output = finish(launch(whole, config=FREQUENT, cache=tmp_path / "cache"))
    assert returncode == 0, output
    rng, kills, num_runs = np.random.default_rng(0), [], 0
    while len(kills) < NUM_KILLS:
        num_runs += 1
        work_dir = tmp_path / f"killed{num_runs}"
        shutil.copytree(whole / "compilation_cache", work_dir / "compilation_cache")
        returncode = None
        while returncode != 0:
            number = (signal.SIGKILL, signal.SIGTERM)[len(kills) % 2]
            process = launch(work_dir, config=FREQUENT, cache=tmp_path / "cache")
            stages, most = WATCHED[len(kills) % len(WATCHED)]
            wait_for_changes(work_dir, process, stages, rng.integers(1, most))
            time.sleep(rng.uniform(0.0, 0.05))
            process.send_signal(number)
            returncode, output = finish(process)
            expected = TrainingInterrupted.exit_code if number == signal.SIGTERM else -number
            assert returncode in (0, expected), output
            assert "Traceback" not in output and "damaged" not in output
            if returncode != 0:
                where = stage_reached(work_dir)
                kills.append((number.name, where, is_within_a_save(work_dir)))
        assert results(work_dir) == results(whole), kills
    assert {stage for _, stage, _ in kills} >= {"teacher", "projection", "student"}, kills
    assert any(is_unfinished for *_, is_unfinished in kills), kills
