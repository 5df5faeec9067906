"""`launch.py`: a user's error is one line and status 2, before any stage runs."""

import json
import pathlib

import jax.numpy as jnp
import pytest

from mlg_jax.config import parse_config
from mlg_jax.experiment import _launch, main
from mlg_jax.experiment._tasks import EVAL_METRICS, classification_loss
from tests.experiment.test_run import settings

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def launch(tmp_path, capsys, monkeypatch):
    """Runs the small experiment with overrides; returns status and the lines of stderr."""
    path = tmp_path / "config.py"
    path.write_text(
        f"import json\ndef get_config():\n    return json.loads('{json.dumps(settings())}')\n"
    )
    monkeypatch.setattr(_launch, "enable_compilation_cache", lambda _: None)

    def run(*overrides, config=path):
        work_dir = f"--workdir={tmp_path / 'run'}"
        status = main([f"--config={config}", work_dir, *(f"--config.{o}" for o in overrides)])
        return status, capsys.readouterr().err.strip().splitlines()

    return run


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["student.train.schedule.name=warmup_cosine", "student.train.schedule.warmup_epochs=3"],
            "config.student.train: `warmup_epochs` must be shorter than the run of 3 epochs; got 3",
        ),
        (
            ["teacher.train.accumulation_steps=3"],
            "config.data.batch_size must be a multiple of 1 devices times 3 accumulation_steps",
        ),
        (
            ["student.train.best_metric=acuracy"],
            "config.student.train: `best_metric` must be one of ['accuracy', 'loss']; got 'acu",
        ),
        ([f"seed={2**32}"], "config: `seed` must be an integer in [0, 4294967295]"),
        ([f"data.seed={2**63}"], "config.data: `seed` must be an integer in [0, 92233720368547758"),
        (["model.name=vgg16", "model.stem=imagenet"], "`x` must have images of at least 32 x 32"),
    ],
    ids=["warmup", "accumulation", "best_metric", "seed", "data seed", "image too small"],
)
def test_one_line_before_any_stage(launch, overrides, message, tmp_path):
    status, lines = launch(*overrides)
    assert status == 2 and message in lines[-1] and lines[-1].startswith("error: ")
    assert not any("teacher" in line for line in lines[:-1])
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config(:\n", "SyntaxError"),
        ("import a_module_that_is_not_there\n", "fails in line 1: ModuleNotFoundError"),
        ("def get_config():\n    return {}['data']\n", "fails in line 2: KeyError: 'data'"),
        ("def get_config():\n    return 3\n", "must return a ConfigDict; got 3"),
    ],
    ids=["syntax", "import", "key", "number"],
)
def test_a_configuration_that_cannot_be_run(launch, tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    status, lines = launch(config=path)
    assert status == 2 and len(lines) == 1 and message in lines[0]


def test_a_fault_of_ours_keeps_its_traceback(launch, monkeypatch):
    monkeypatch.setattr(
        _launch, "run_experiment", lambda *_, **__: jnp.zeros((2, 3)) @ jnp.zeros((2, 3))
    )
    with pytest.raises(TypeError, match="contracting"):
        launch()


def test_the_metrics_that_a_best_checkpoint_can_be_chosen_by():
    class Model:
        def apply(self, variables, image):
            return image

    batch = {"image": jnp.zeros((4, 3)), "label": jnp.zeros(4, jnp.int32)}
    _, (metrics, _) = classification_loss(Model())({}, {}, batch, None, False)
    assert {*metrics, "loss"} == set(EVAL_METRICS)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_what_is_shown_makes_the_same_experiment(path, capsys):
    assert main([f"--config={path}", "--mode=show", "--config.seed=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "seed=3" in lines
    rebuilt = parse_config({}, dict(line.split("=", 1) for line in lines))
    assert rebuilt == _launch.load_config(path, ["--config.seed=3"])
