"""Several processes: the options of `launch.py`, and a whole experiment run by two of them."""

import json

import numpy as np
import pytest

from mlg_jax.experiment import main
from mlg_jax.train import read_metrics
from tests.train.test_processes import finish, free_port, start

# A residual network of one block: the test is about processes, and each compiles by itself.
CONFIG = """
import functools

from mlg_jax.models import MODELS, _registry
from tests.experiment.test_run import settings

MODELS["tiny"] = functools.partial(_registry._resnet, (1,), _registry.BasicBlock)


def get_config():
    config = settings()
    for stage in ("teacher", "student"):
        config[stage]["train"]["num_epochs"] = 1
    config["projection"]["num_steps"] = 20
    return config
"""


def launch(work_dir, *flags, cache, config=CONFIG):
    path = work_dir.parent / "tiny.py"
    path.write_text(config)
    args = (f"--config={path}", f"--workdir={work_dir}", *flags)
    return start("launch", *args, cache=cache, PYTHONWARNINGS="error::FutureWarning")


@pytest.mark.slow
def test_two_processes_run_an_experiment_as_one_does(tmp_path):
    """They share a work directory, write each file once and agree with a single one."""
    flags = (f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2")
    directory = tmp_path / "two"
    processes = [
        launch(directory, *flags, f"--process_id={i}", cache=tmp_path / f"cache{i}")
        for i in range(2)
    ]
    outputs = [finish(process) for process in processes]
    for returncode, output in outputs:
        assert returncode == 0, output
    assert ["test accuracy" in output for _, output in outputs] == [True, False]
    names = {str(p.relative_to(directory)) for p in directory.rglob("*.*")}
    assert {"projection/projected.npz", "report/report.md", "student/metrics.jsonl"} <= names
    assert not {n for n in names if n.endswith(".tmp") or "state.npz" in n}

    returncode, output = finish(launch(tmp_path / "one", cache=tmp_path / "cache0"))
    assert returncode == 0, output
    two, one = (
        json.loads((tmp_path / name / "report/summary.json").read_text()) for name in ("two", "one")
    )
    assert two["device"].startswith("2 x") and one["device"].startswith("1 x")
    for stage in ("teacher", "projected", "student"):
        assert two[stage]["test_loss"] == pytest.approx(one[stage]["test_loss"], rel=1e-2)
    lines = [read_metrics(tmp_path / name / "teacher") for name in ("two", "one")]
    steps = [[line["step"] for line in part] for part in lines]
    assert steps[0] == steps[1]
    np.testing.assert_allclose(lines[0][0]["loss"], lines[1][0]["loss"], rtol=1e-4)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes=2"], "must be given together; got None, 2 and None"),
        (["--process_id=0", "--coordinator_address=a:1"], "given together; got a:1, None and 0"),
        (["a", 2, 0], "--coordinator_address must be HOST:PORT; got 'a'"),
        ([":80", 2, 0], "--coordinator_address must be HOST:PORT; got ':80'"),
        (["a:1", 0, 0], "--num_processes must be an integer >= 1; got 0"),
        (["a:1", 2, 2], r"--process_id must be an integer in [0, 1]; got 2"),
        (["a:1", 2, -1], r"--process_id must be an integer in [0, 1]; got -1"),
        (["a:1", "two", 0], "argument --num_processes: invalid int value: 'two'"),
    ],
)
def test_flags_that_do_not_fit(flags, message, capsys):
    if len(flags) == 3:
        names = ("coordinator_address", "num_processes", "process_id")
        flags = [f"--{name}={value}" for name, value in zip(names, flags, strict=True)]
    with pytest.raises(SystemExit, match="2"):
        main(["--config=configs/quickstart.py", *flags])
    assert message in capsys.readouterr().err
