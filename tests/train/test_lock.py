"""A work directory has one run at a time, and a dead process leaves no lock behind."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys

import pytest

from mlg_jax import train
from mlg_jax.train import WorkDirError, lock_work_dir
from mlg_jax.train._lock import LOCK_FILE
from tests.train import toy

HOLD = """
import sys, time
from mlg_jax.train import lock_work_dir
with lock_work_dir(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.bad_input
def test_a_second_run_is_refused_until_the_first_one_is_dead(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        message = rf"in use by process {process.pid} on .*\. Wait until it ends, or choose another"
        with pytest.raises(WorkDirError, match=message), lock_work_dir(tmp_path):
            pass
        with pytest.raises(WorkDirError, match=message):
            toy.run(work_dir=tmp_path)
        assert not (tmp_path / train.CHECKPOINT_DIR).exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with lock_work_dir(tmp_path):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


def test_the_lock_ends_with_its_context(tmp_path):
    with pytest.raises(ValueError, match="x"), lock_work_dir(tmp_path / "new"):
        raise ValueError("x")
    with lock_work_dir(tmp_path / "new"):
        pass


def test_of_several_processes_the_first_one_locks(tmp_path, monkeypatch):
    with lock_work_dir(tmp_path):
        holder = (tmp_path / LOCK_FILE).read_text()
        monkeypatch.setattr("mlg_jax.train._lock.jax.process_index", lambda: 1)
        with lock_work_dir(tmp_path):
            assert (tmp_path / LOCK_FILE).read_text() == holder


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING, "mlg_jax"), lock_work_dir(tmp_path):
        assert "cannot be locked" in caplog.text and str(tmp_path) in caplog.text
