"""`mlg compress`: from a teacher's checkpoint to a packed file within its budget."""

import json

import jax
import numpy as np
import optax
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


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--distill-epochs", "2"]])
def test_it_writes_a_file_within_the_budget(work_dir, options, tmp_path, capsys):
    path = tmp_path / "small.mlg"
    given = work_dir / "teacher" if options else work_dir
    command = ["compress", str(given), "--target-kb", "3", "--images", "24", "--json", *options]
    assert main([*command, "--output", str(path)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["weights_kb"] <= 3.0 and result["file_bytes"] == path.stat().st_size
    predictor = mlg_jax.load_packed(path)
    assert predictor.spec.weight_bits == 8 and len(predictor.spec.generation) == 6
    assert set(predictor.manifest["metrics"]) == {
        "validation_accuracy",
        "validation_accuracy_before",
    }
    assert predictor.logits(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 4)
    assert sum(row["kb"] for row in result["layers"]) < result["weights_kb"]


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
        tmp_path / "nothing": "must be a work directory of launch.py or its teacher's checkpoints",
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
