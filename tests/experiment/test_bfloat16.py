"""The whole pipeline in bfloat16: teacher, projection, student, packed file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax import load_packed
from mlg_jax.config import parse_config
from mlg_jax.data import load_dataset
from mlg_jax.experiment import run_experiment
from mlg_jax.train import load_variables
from tests.experiment.test_run import settings

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.slow]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bfloat16")
    config = settings()
    config["model"]["dtype"] = "bfloat16"
    config = parse_config(config)
    return config, directory, run_experiment(config, directory)


def test_every_stage_learns(finished):
    _, _, summary = finished
    assert summary["teacher"]["test_accuracy"] > 0.85  # chance is 0.25
    assert summary["student"]["test_accuracy"] > max(0.7, summary["projected"]["test_accuracy"])


def test_parameters_and_statistics_stay_in_single_precision(finished):
    _, directory, _ = finished
    for stage in ("teacher", "student"):
        params, state, _ = load_variables(directory / stage / "checkpoints")
        for leaf in jax.tree.leaves((params, state)):
            assert leaf.dtype == jnp.float32


def test_the_packed_network_computes_in_half_precision_and_scores_the_same(finished):
    config, directory, summary = finished
    predictor = load_packed(directory / "packed/student.mlg")
    assert predictor.spec.dtype == "bfloat16"
    dataset = load_dataset(config.data)
    right = total = 0
    for batch in dataset.test_batches():
        keep = np.asarray(batch["mask"])
        labels = np.asarray(batch["label"])[keep]
        logits = np.asarray(predictor.logits(np.asarray(batch["image"])[keep]), np.float32)
        right, total = right + np.sum(logits.argmax(-1) == labels), total + len(labels)
    assert abs(right / total - summary["student"]["test_accuracy"]) <= 0.02
