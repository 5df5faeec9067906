"""Transfer learning: which variables are taken over or fresh, which train, which are saved."""

import collections
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mlg_jax import GenerationSpec, save_packed, train
from mlg_jax.config import parse_config
from mlg_jax.experiment._run import _Experiment
from mlg_jax.experiment._tasks import classification_loss
from mlg_jax.experiment._transfer import model_to_train, trainable_rule, transferred
from mlg_jax.export import to_torch, write_torch
from mlg_jax.layers import layer_records
from mlg_jax.memory import list_residuals
from mlg_jax.models import MODELS, create_model
from mlg_jax.models._blocks import BasicBlock
from mlg_jax.models._registry import _resnet
from tests.experiment.test_run import settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def flat(variables):
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(variables, sep="/").items()}


@pytest.fixture(scope="module", autouse=True)
def one_block():
    """The network "tiny" of these tests."""
    with mock.patch.dict(MODELS, tiny=functools.partial(_resnet, (1,), BasicBlock)):
        yield


def fresh(num_classes, width=0.125, seed=0, stem="imagenet"):
    """Random variables of the tiny network; running statistics also differ from those of `init`."""
    model = create_model("tiny", num_classes=num_classes, width=width, stem=stem)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), image)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.uniform(0.1, 0.6, s.shape).astype(np.float32), dict(shapes))


def save(directory, variables):
    """A checkpoint as `train` writes it."""
    schedule = train.make_schedule(train.ScheduleSpec(), num_epochs=1, steps_per_epoch=1)
    state = train.create_state(
        params=variables["params"],
        model_state={k: v for k, v in variables.items() if k != "params"},
        optimizer=train.make_optimizer(train.OptimizerSpec(name="sgd"), schedule),
        key=jax.random.key(0),
    )
    with train.Checkpointer(directory) as checkpoints:
        checkpoints.save(state, meta={})


def test_another_number_of_classes_gets_a_fresh_classifier(tmp_path):
    source, start = fresh(5, seed=1), fresh(3)
    save(tmp_path, source)
    got, source, start = map(flat, (transferred(tmp_path, start), source, start))
    assert got.keys() == start.keys()
    heads = {name for name in got if name.startswith("params/classifier/")}
    assert heads == {"params/classifier/kernel", "params/classifier/bias"}
    for name, value in got.items():
        expected = start if name in heads else source
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_the_same_number_of_classes_takes_all(tmp_path):
    source = fresh(3, seed=1)
    save(tmp_path, source)
    got = flat(transferred(tmp_path, fresh(3)))
    for name, value in flat(source).items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def tiny_model(num_classes):
    return create_model("tiny", num_classes=num_classes, width=0.125, stem="imagenet")


def test_files_of_pytorch_are_checkpoints_too(tmp_path):
    path, source = tmp_path / "source.safetensors", fresh(5, seed=1)
    write_torch(path, to_torch(layer_records(tiny_model(5)), source, architecture="resnet"))
    save(tmp_path / "checkpoints", source)
    for num_classes in (3, 5):
        start, model = fresh(num_classes), tiny_model(num_classes)
        expected = flat(transferred(tmp_path / "checkpoints", start))
        got = flat(transferred(path, start, model, (1, 8, 8, 3)))
        assert got.keys() == expected.keys()
        for name, value in got.items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_packed_models_are_checkpoints_too(tmp_path):
    """Their generated kernels are built."""
    options = {"width": 0.125, "stem": "imagenet", "weight_bits": 8}
    generation = GenerationSpec.from_bits(1, 3, 4, 8, 4)
    small = create_model("tiny", num_classes=5, generation=generation, **options)
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    variables = small.init(jax.random.key(2), image)
    save_packed(tmp_path / "small.mlg", small, variables)
    start = fresh(5)
    got = transferred(tmp_path / "small.mlg", start, tiny_model(5), (1, 8, 8, 3))
    assert flat(got).keys() == flat(start).keys()
    np.testing.assert_allclose(
        tiny_model(5).apply(got, image, train=False),
        small.apply(variables, image, train=False),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.bad_input
def test_files_that_do_not_fit(tmp_path):
    path, model = tmp_path / "source.safetensors", tiny_model(3)
    with pytest.raises(
        train.CheckpointError, match="`init_checkpoint` must hold this network, .*No"
    ):
        transferred(path, fresh(3), model)
    write_torch(path, {"fc.weight": np.zeros((2, 8))})
    with pytest.raises(
        train.CheckpointError, match=r"got .*source.safetensors: .* missing: fc.bias"
    ):
        transferred(path, fresh(3), model)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "name, message",
    [
        ("a.npz", "`path` must end in one of .*'.pth.tar'.*; got .*a.npz"),
        ("weights", "`path` must end in one of .*; got .*weights"),
        ("a.pth.tar", "not a zip archive, as written by PyTorch 1.6"),
        ("a.ckpt", "not a zip archive, as written by PyTorch 1.6"),
    ],
)
def test_a_file_that_is_there_is_looked_at(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(train.CheckpointError, match=message):
        transferred(tmp_path / name, fresh(3), tiny_model(3))


@pytest.mark.bad_input
def test_the_right_network_is_named(tmp_path):
    path = tmp_path / "source.safetensors"
    write_torch(path, to_torch(layer_records(tiny_model(5)), fresh(5), architecture="resnet"))
    model = create_model("resnet10", num_classes=3, width=0.125, stem="cifar")
    with pytest.raises(
        train.CheckpointError, match="use --config.model.name=tiny --config.model.stem=imagenet"
    ):
        transferred(path, fresh(3), model)


@pytest.mark.bad_input
def test_another_network_is_refused_by_name(tmp_path):
    save(tmp_path, fresh(3, width=0.25))
    with pytest.raises(
        train.CheckpointError,
        match=r"up to its number of classes; got another in .*: batch_stats/stage1_block1/norm1/"
        r"mean is \(16,\) there and \(8,\) here; .*; \d+ more",
    ):
        transferred(tmp_path, fresh(3))
    lacking = {"params": dict(fresh(3)["params"]), "batch_stats": fresh(3)["batch_stats"]}
    del lacking["params"]["stem_conv"]
    save(tmp_path / "lacking", lacking)
    with pytest.raises(
        train.CheckpointError,
        match=r"params/stem_conv/kernel is absent there and \(7, 7, 3, 8\) here\.$",
    ):
        transferred(tmp_path / "lacking", fresh(3))


def chosen(trainable):
    rule = trainable_rule(trainable)
    names = [n.removeprefix("params/") for n in flat(fresh(3)) if n.startswith("params/")]
    return {name for name in names if rule(name)}


def test_rules_choose_by_name():
    classifier = {"classifier/kernel", "classifier/bias"}
    norms = {"stem_norm", "stage1_block1/norm1", "stage1_block1/norm2"}
    assert trainable_rule("all") is None
    assert chosen("classifier") == classifier
    assert chosen("biases") == classifier | {f"{name}/bias" for name in norms}


def loss_of_parts(trainable, remat=None):
    """The loss as a function of trained and frozen parts, state, image and label; its arguments."""
    model = create_model("resnet10", num_classes=10, width=0.25, remat=remat)
    model = model_to_train(model, trainable)
    image = jax.ShapeDtypeStruct((32, 32, 32, 3), jnp.float32)
    label = jax.ShapeDtypeStruct((32,), jnp.int32)
    state = dict(jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), image))
    trained, frozen = train.split_params(state.pop("params"), trainable_rule(trainable))

    def loss(trained, frozen, state, image, label):
        batch, params = {"image": image, "label": label}, train.merge_params(trained, frozen)
        return classification_loss(model)(params, state, batch, jax.random.key(0), True)[0]

    return loss, (trained, frozen, state, image, label)


def kept_activations(trainable, remat=None):
    """Bytes saved for the trained part, by dtype; traced only."""
    loss, args = loss_of_parts(trainable, remat)
    kept = collections.Counter()
    for row in list_residuals(loss, *args, argnums=0):
        if row.kind == "activation":
            kept[row.dtype] += row.num_bytes
    return kept


def test_frozen_parts_keep_no_residuals_they_do_not_need():
    """Biases need one bit per ReLU, its sign; the classifier its input, 32 x 128 floats."""
    whole, biases, classifier = map(kept_activations, ("all", "biases", "classifier"))
    assert classifier.total() < 2 * 32 * 128 * 4
    assert biases["float32"] < classifier["float32"] + 20_000  # norms: numbers per channel
    # A word holds 32 channels: in stages of 16 channels it is half empty.
    assert biases["bool"] == 0 and biases["uint32"] < 2 * whole["bool"] // 8
    assert classifier.total() < biases.total() < 0.03 * whole.total()


@pytest.mark.parametrize("remat", ["convs", "blocks", "bitmap_units", "quantized_blocks"])
def test_frozen_blocks_under_a_policy_keep_nothing(remat):
    """Frozen blocks are not differentiated, so a policy has nothing to store."""
    assert kept_activations("classifier", remat).total() < 2 * 32 * 128 * 4


def test_the_compiled_gradient_takes_less_memory_too():
    """With JAX's own rectifiers, training biases saves hardly any memory."""

    def compiled_bytes(trainable):
        loss, args = loss_of_parts(trainable)
        program = jax.jit(jax.value_and_grad(loss)).lower(*args).compile()
        return program.memory_analysis().temp_size_in_bytes

    # Both hold up to 2 MiB of patches, which is much for a network of this size.
    assert compiled_bytes("biases") < 0.75 * compiled_bytes("all")


@pytest.mark.parametrize("trainable", ["all", "biases", "classifier"])
def test_the_teacher_stage_trains_what_the_configuration_says(tmp_path, trainable):
    """Frozen arrays equal the checkpoint bit for bit; pruning does not touch them either."""
    start = fresh(7, stem="cifar")
    save(tmp_path / "source", start)
    raw = settings()
    raw["model"]["width"] = 0.125
    raw["teacher"] = {
        "init_checkpoint": str(tmp_path / "source"),
        "trainable": trainable,
        "train": {
            "num_epochs": 1,
            "log_every_steps": 4,
            "optimizer": {"name": "adamw", "weight_decay": 0.1},
            "schedule": {"name": "constant", "learning_rate": 0.03},
            "pruning": {"final_sparsity": 0.5, "every_steps": 2},
        },
    }
    run = _Experiment(parse_config(raw), tmp_path)
    run.train_teacher()
    params, state, meta = train.load_variables(tmp_path / "teacher" / train.CHECKPOINT_DIR)
    rule, after = trainable_rule(trainable), flat(params)
    for name, value in flat(start["params"]).items():
        if name.startswith("classifier/"):
            assert after[name].shape[-1] == 4 and np.mean(after[name] == 0) == 0.5
        else:
            is_moved = not np.array_equal(value, after[name])
            assert is_moved == (rule is None or rule(name)), name
    statistics = flat(state["batch_stats"])
    stays = [np.array_equal(statistics[k], v) for k, v in flat(start["batch_stats"]).items()]
    assert all(stays) if trainable != "all" else not any(stays)
    lines = [r for r in train.read_metrics(tmp_path / "teacher") if r["kind"] == "train"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert run._teacher_zeros(params) == {"zero_fraction": meta["metrics"]["zero_fraction"]}
    assert meta["metrics"]["zero_fraction"] == pytest.approx(0.5, abs=1e-3)


def test_a_projected_student_trains_its_biases_only(tmp_path):
    """Factors are frozen, so the penalty is constant and has no gradient."""
    raw = settings(trainable="biases", loss="cross_entropy")
    raw["model"]["name"] = "tiny"
    raw["student"]["train"] = {"num_epochs": 1}
    run = _Experiment(parse_config(raw), tmp_path)
    start = {k: 0.1 + np.zeros(v.shape) for k, v in flat_shapes(run).items()}
    (tmp_path / "projection").mkdir()
    np.savez(tmp_path / "projection/projected.npz", **start)
    train.seal(tmp_path / "projection")
    run.train_student()
    params, state, _ = train.load_variables(tmp_path / "student" / train.CHECKPOINT_DIR)
    names = [name.rsplit("/", 1)[-1] for name in start]
    assert {"basis", "coeff_out", "scale", "kernel", "bias"} <= set(names)
    rule = trainable_rule("biases")
    for name, value in flat({"params": params, **state}).items():
        is_moved = not np.array_equal(value, start[name].astype(value.dtype))
        is_param, _, rest = name.partition("/")
        assert is_moved == (is_param == "params" and rule(rest)), name


def flat_shapes(run):
    return traverse_util.flatten_dict(dict(run._shapes(run._student)), sep="/")
