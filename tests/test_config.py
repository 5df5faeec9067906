"""The schema: valid configurations become typed specs; errors name the key."""

import json
import pathlib

import pytest

from mlg_jax.config import ConfigError, ExperimentConfig, parse_config, to_json
from mlg_jax.experiment import load_config
from mlg_jax.kernels import OrdinarySpec
from mlg_jax.quant import QuantSpec
from mlg_jax.train import ParamGroup, PruningSpec

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
PAPER = CONFIGS[0].with_name("cifar10_resnet18.py")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_parses_and_names_its_command(path):
    config = load_config(path)
    assert isinstance(config, ExperimentConfig) and isinstance(hash(config), int)
    assert f"python launch.py --config=configs/{path.name}" in path.read_text()
    assert json.loads(json.dumps(to_json(config)))["model"]["name"] == config.model.name


def test_configurations_are_locked():
    import runpy

    config = runpy.run_path(str(PAPER))["get_config"]()
    with pytest.raises((AttributeError, KeyError)):
        config.sede = 1


def test_the_papers_recipe_is_the_papers():
    config = load_config(PAPER)
    spec = config.generation.spec
    assert (spec.base_in, spec.base_out) == (2, 44)
    assert (spec.basis, spec.coeff_in, spec.coeff_out) == tuple(map(QuantSpec, (3, 6, 3)))
    for stage in (config.teacher, config.student):
        assert stage.train.num_epochs == 200
        assert stage.train.optimizer.name == "radam"
        assert stage.train.optimizer.weight_decay == 5e-4
        assert stage.train.schedule.learning_rate == 2e-3
    student = config.student
    assert (student.beta, student.temperature, student.penalty) == (0.9, 3.0, 0.05)
    assert config.projection.num_steps == 3000


def test_overrides_are_literals_else_strings():
    config = load_config(
        PAPER,
        [
            "--config.seed=7",
            "--config.student.penalty=1e-2",
            "--config.generation.basis_bits=none",
            "--config.teacher.checkpoint=runs/a/teacher/checkpoints",
            "--config.data.augment.horizontal_flip=false",
            "--config.data.mean=[0.5, 0.5, 0.5]",
            "--config.student.train.optimizer.clip_norm=1.5",
        ],
    )
    assert config.seed == 7 and config.student.penalty == 0.01
    assert config.generation.spec.basis.bits is None
    assert config.teacher.checkpoint == "runs/a/teacher/checkpoints"
    assert config.data.augment.horizontal_flip is False
    assert config.data.mean == (0.5, 0.5, 0.5)
    assert config.student.train.optimizer.clip_norm == 1.5
    assert config.teacher.train.optimizer.clip_norm is None


def test_transfer_and_pruning_are_off_unless_asked_for():
    config = load_config(PAPER)
    assert config.teacher.train.pruning is None and config.student.train.pruning is None
    assert (config.teacher.init_checkpoint, config.teacher.trainable) == (None, "all")
    config = load_config(
        PAPER,
        [
            "--config.teacher.init_checkpoint=runs/other/teacher/checkpoints",
            "--config.teacher.trainable=biases",
            "--config.teacher.train.pruning.final_sparsity=0.9",
            "--config.teacher.train.pruning.exclude=['classifier/*']",
            "--config.student.trainable=classifier",
        ],
    )
    assert config.teacher.trainable == "biases" and config.student.trainable == "classifier"
    pruning = config.teacher.train.pruning
    assert pruning == PruningSpec(final_sparsity=0.9, exclude=("classifier/*",))
    assert config.student.train.pruning is None
    assert to_json(config)["teacher"]["train"]["pruning"]["scope"] == "layer"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["student.train.pruning.final_sparsity=0.5"],
            r"config\.student: `train.pruning` must be None for generated kernels.*0\.5",
        ),
        (
            ["teacher.train.pruning.final_sparsity=1.5"],
            r"config\.teacher\.train\.pruning: `final_sparsity` must be .*; got 1.5",
        ),
        (["teacher.train.pruning.every_steps=5"], r"pruning\.final_sparsity is missing"),
        (
            ["teacher.trainable=biases"],
            r"config\.teacher: `trainable` must be 'all' if .* random values; got 'biases'",
        ),
        (
            ["student.trainable=classifier", "student.start=random"],
            r"config\.student: `trainable` must be 'all' if .* random values; got 'classifier'",
        ),
        (
            ["teacher.init_checkpoint=a", "teacher.trainable=head"],
            r"`trainable` must be one of \['all', 'biases', 'classifier'\]; got 'head'",
        ),
        (
            ["teacher.init_checkpoint=a", "teacher.checkpoint=b"],
            r"`init_checkpoint` must be None if `checkpoint` gives a trained teacher; got 'a'",
        ),
        (["teacher.init_checkpoint=3"], r"`init_checkpoint` must be str or None; got 3"),
    ],
)
def test_transfer_and_pruning_that_do_not_fit(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(PAPER, [f"--config.{override}" for override in overrides])


def test_recommended_ratio_by_width():
    overrides = ["--config.generation.ratio=recommended", "--config.generation.coeff_out_bits=none"]
    spec = load_config(PAPER, overrides).generation.spec
    assert (spec.basis.ratio, spec.coeff_in.ratio, spec.coeff_out.ratio) == (0.4, 0.6, 1.0)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "override, message",
    [
        (
            "sede=1",
            r"config\.sede does not exist \(got 1\); it has data, generation, model, .*seed",
        ),
        ("student.penalti=0.1", r"config\.student\.penalti does not exist .*; it has .*penalty"),
        ("data.augment.flip=1", r"config\.data\.augment\.flip does not exist .*horizontal_flip"),
        ("student.penalty=high", r"config\.student: `penalty` must be a number .*; got 'high'"),
        ("model.name=resnet19", r"config\.model: `name` must be one of .*; got 'resnet19'"),
        ("model.dtype=fp8", r"config\.model: `dtype` must be one of .*'bfloat16'.*; got 'fp8'"),
        ("data.name=cifar11", r"config\.data: `name` must be one of .*'cifar10'.*got 'cifar11'"),
        ("data.batch_size=0", r"config\.data: `batch_size` must be .*; got 0"),
        ("generation.basis_bits=33", r"config\.generation: `bits` must be .*\[1, 16\]; got 33"),
        ("generation.ratio=all", r"config\.generation: `ratio` must be one of \['recommended'\]"),
        ("student.loss=kd", r"config\.student: `loss` must be one of .*'distillation'.*; got 'kd'"),
        ("student.train.optimizer.name=lion", r"config\.student\.train\.optimizer: `name` must be"),
        ("teacher.train=3", r"config\.teacher\.train must have parts \(.*num_epochs.*\); got 3"),
        ("seed.x=3", r"config\.seed\.x must name a value; 'seed' has no parts"),
        ("projection.method=pca", r"config\.projection: `method` must be one of .*; got 'pca'"),
    ],
)
def test_wrong_keys_and_values(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(PAPER, [f"--config.{override}"])


@pytest.mark.bad_input
def test_wrong_files(tmp_path):
    with pytest.raises(ConfigError, match="`config` must be a Python file; there is no nowhere.py"):
        load_config("nowhere.py")
    empty = tmp_path / "empty.py"
    empty.write_text("")
    with pytest.raises(ConfigError, match=r"`config` must define get_config\(\); .*empty.py does"):
        load_config(empty)
    with pytest.raises(ConfigError, match=r"--config.seed must have a value: --config.seed=VALUE"):
        load_config(PAPER, ["--config.seed"])
    with pytest.raises(ConfigError, match=r"config\.data is missing"):
        parse_config({})


def test_exceptions_by_layer_and_parameter_groups_survive_json():
    config = load_config(
        PAPER,
        [
            "--config.generation.layers={'stem/*': None, 'stage4_*': '3-24-4-6-4'}",
            "--config.student.train.optimizer.groups=[{'pattern': '*/bias', 'learning_rate': 2.0}]",
        ],
    )
    again = parse_config(json.loads(json.dumps(to_json(config))))
    assert again == config and hash(again) == hash(config)
    kernels = again.generation.by_layer
    assert list(kernels) == ["stem/*", "stage4_*", "*"] and kernels["stem/*"] is None
    assert kernels["stage4_*"].notation() == "3-24-4-6-4"
    assert kernels["*"] == again.generation.spec
    assert again.student.train.optimizer.groups == (
        ParamGroup(pattern="*/bias", learning_rate=2.0),
    )


def test_bit_widths_of_single_layers():
    layers = "{'stem/*': 32, 'stage4_*': 4, 'stage?_*': '3-24-4-6-4', 'classifier': None}"
    kernels = load_config(PAPER, [f"--config.generation.layers={layers}"]).generation.by_layer
    assert kernels["stem/*"] == OrdinarySpec(QuantSpec(None))
    assert kernels["stage4_*"] == OrdinarySpec(QuantSpec(4))
    assert kernels["classifier"] is None


def test_the_report_does_not_determine_results():
    plain, augmented = load_config(PAPER), load_config(PAPER, ["--config.report.augmented=true"])
    assert augmented.report.augmented and not plain.report.augmented
    assert plain.determining_json == augmented.determining_json


@pytest.mark.bad_input
def test_a_projection_needs_a_teacher_of_the_same_network():
    wide = {"name": "resnet18", "width": 2.0}
    other = [f"--config.teacher.model={wide}"]
    with pytest.raises(ConfigError, match="`student.start` must be 'random' if .*'projected'"):
        load_config(PAPER, other)
    config = load_config(PAPER, [*other, "--config.student.start=random"])
    assert config.teacher_model.width == 2.0 and config.model.width == 1.0


@pytest.mark.bad_input
@pytest.mark.parametrize("value", ["0", "17", "True", "4.0"])
def test_a_width_that_is_none(value):
    with pytest.raises(ConfigError, match=rf"must be None, a bit width .*got {value}"):
        load_config(PAPER, [f"--config.generation.layers={{'stem/*': {value}}}"])


@pytest.mark.bad_input
def test_a_notation_that_is_none():
    with pytest.raises(ConfigError, match="five numbers Bi-Bo-qb-qu-qv.*got '2-44'"):
        load_config(PAPER, ["--config.generation.layers={'stem/*': '2-44'}"])
    with pytest.raises(ConfigError, match="`layers` must be .*; got 3"):
        load_config(PAPER, ["--config.generation.layers=3"])
