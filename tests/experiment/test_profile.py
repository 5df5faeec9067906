"""`--mode=profile`: its files, its numbers, and that it changes nothing else."""

import json
import shutil
import types

import flax.traverse_util
import jax
import numpy as np
import optax
import pytest

from mlg_jax.config import ConfigError, parse_config
from mlg_jax.experiment import _profile, _profile_report, main, run_experiment
from mlg_jax.experiment._run import _Experiment
from mlg_jax.memory import memory_report, storage_bytes
from mlg_jax.train import (
    Checkpointer,
    CheckpointError,
    TrainingInterrupted,
    WorkDirError,
    create_state,
    make_mesh,
    seal,
)
from tests._models import tiny_resnet
from tests.experiment.test_run import settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NETWORKS = ("teacher", "student")
POLICY = "bitmap_blocks"


def small(**parts):
    """A narrow network, one epoch of two batches, under a policy with capacities."""
    raw = settings()
    raw["data"]["batch_size"] = 8
    raw["data"]["num_validation"] = 0
    raw["data"]["synthetic"] = {"num_classes": 4, "num_train": 16, "num_test": 8}
    for stage in NETWORKS:
        raw[stage]["train"] = {**raw[stage]["train"], "num_epochs": 1}
    return {**raw, "remat": {"policy": POLICY}, **parts}


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.relative_to(directory).parts[0] != "profile"
    }


@pytest.fixture(scope="module", autouse=True)
def tiny_models():
    """One block instead of four, because a profile compiles each network many times."""

    def create(name, *, width, activation_bits=None, **options):
        return tiny_resnet(options.pop("generation", None), stage_sizes=(1,), channels=8, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlg_jax.experiment._run.create_model", create)
        yield


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """A profile of an untrained experiment: its directory, its content and the printed output."""
    directory = tmp_path_factory.mktemp("profile")
    config = directory / "tiny.py"
    config.write_text("from tests.experiment.test_profile import small as get_config\n")
    work_dir = directory / "run"
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("sys.stdout.write", lines.append)
        patch.setattr(_profile, "BATCH_SIZES", ())
        status = main([f"--config={config}", f"--workdir={work_dir}", "--mode=profile"])
    assert status == 0
    profile = json.loads((work_dir / "profile/profile.json").read_text())
    return work_dir, profile, "".join(lines)


def test_only_the_profile_is_written(profiled):
    work_dir, _, _ = profiled
    assert [path.name for path in work_dir.iterdir()] == ["profile"]
    pictures = {
        "storage.png",
        *(f"residuals_{name}.png" for name in NETWORKS),
        *(f"densities_{name}.png" for name in NETWORKS),
        *(f"sweep_{name}_{label}.png" for name in NETWORKS for label in ("none", POLICY)),
    }
    files = {path.name for path in (work_dir / "profile").iterdir()}
    assert files == pictures | {"profile.json", "profile.md"}
    text = (work_dir / "profile/profile.md").read_text()
    for name in pictures:
        assert (work_dir / "profile" / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert f"({name})" in text


def test_json_has_the_promised_keys(profiled):
    _, profile, _ = profiled
    assert set(profile) == {"networks", "storage", "device", "python", "versions", "config"}
    assert list(profile["networks"]) == list(NETWORKS)
    for network in profile["networks"].values():
        assert set(network) == {"variables", "policies", "densities"}
        assert network["variables"] == "fresh"
        assert list(network["policies"]) == ["none", POLICY]
        for label, measured in network["policies"].items():
            assert measured["preset"] == label
            assert measured["batch_size"] == 8
            assert measured["report"]["allocator"] is None or jax.default_backend() != "cpu"
            assert [row["batch_size"] for row in measured["sweep"]] == [8]


def test_numbers_are_those_of_a_memory_report(profiled):
    """Compared with a report on the loss built here, without the machinery of policies."""
    _, profile, _ = profiled
    name = "student"  # its batch also has the teacher's logits
    run = _Experiment(parse_config(small()), profiled[0])
    stage = run._student_stage(run._fresh(run._student), "fresh", lambda: run._fresh(run._teacher))
    params = dict(stage.variables)
    state = {"batch_stats": params.pop("batch_stats")}
    batch = {
        "image": np.zeros((8, 8, 8, 3), np.float32),
        "label": np.zeros(8, np.int32),
        "teacher_logits": np.zeros((8, 4), np.float32),
    }
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params["params"], state, batch)
    )
    loss_fn = stage.make_loss(stage.model)
    expected = memory_report(
        lambda p, s, b: loss_fn(p, s, b, jax.random.key(0), True), *shapes, argnums=0, has_aux=True
    )
    measured = profile["networks"][name]["policies"]["none"]
    report, own = measured["report"], measured["sweep"][-1]
    assert report["activation_bytes"] == expected.activation_bytes == own["activation_bytes"]
    assert report["compiled"]["temporary_bytes"] == own["temporary_bytes"]
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert own["parameter_bytes"] == own["gradient_bytes"] == num_bytes
    rows = report["residuals"]
    assert sum(row["num_bytes"] for row in rows) == report["total_residual_bytes"]
    known = [row for row in rows if row["kind"] == "activation" and row["shape"]]
    assert known and all(0.0 <= row["zero_fraction"] <= 1.0 for row in known)
    assert any(row["zero_fraction"] > 0.2 for row in known)  # of rectifiers, for a real batch


@pytest.mark.parametrize("name", NETWORKS)
def test_the_policy_keeps_less_and_has_measured_capacities(profiled, name):
    _, profile, _ = profiled
    network = profile["networks"][name]
    plain, policy = (network["policies"][label] for label in ("none", POLICY))
    assert policy["report"]["activation_bytes"] < 0.5 * plain["report"]["activation_bytes"]
    assert plain["capacities"] == {} and policy["capacities"]
    for row, other in zip(policy["sweep"], plain["sweep"], strict=True):
        assert row["activation_bytes"] < other["activation_bytes"]
    largest = {row["name"]: row["maximum"] for row in network["densities"]["layers"]}
    for segment, capacity in policy["capacities"].items():
        assert capacity >= min(1.0, largest[segment])  # the same batches, and a margin


@pytest.mark.parametrize("name", NETWORKS)
def test_densities_are_of_an_epoch(profiled, name):
    _, profile, _ = profiled
    found = profile["networks"][name]["densities"]
    assert found["num_batches"] == 2
    for row in (*found["layers"], *found["kinds"]):
        assert 0.0 <= row["minimum"] <= row["mean"] <= row["maximum"] <= 1.0
        assert row["num_batches"] == 2
    assert any(row["minimum"] < row["maximum"] < 1.0 for row in found["layers"])
    kinds = {row["name"]: row for row in found["kinds"]}
    assert set(kinds) == {"block", "unit"} == {row["kind"] for row in found["layers"]}
    for kind, pooled in kinds.items():
        means = [row["mean"] for row in found["layers"] if row["kind"] == kind]
        assert pooled["mean"] == pytest.approx(np.mean(means))


def test_storage_curves_and_crossovers(profiled):
    _, profile, _ = profiled
    storage = profile["storage"]
    size = storage["num_elements"]
    assert size == 8 * 8 * 8 * 8 and storage["value_bits"] == 32  # [batch, 8, 8, channels]
    for name, curve in storage["curves"].items():
        assert curve[-1] == storage_bytes(name, size, size)
    crossovers = {(row["storage"], row["other"]): row["density"] for row in storage["crossovers"]}
    assert crossovers["dense", "bitmap"] == 31 / 32
    assert crossovers["dense", "coo_int32"] == 1 / 2
    assert len(crossovers) == 10


def test_markdown_and_the_printed_table_tell_the_same(profiled):
    work_dir, profile, printed = profiled
    text = (work_dir / "profile/profile.md").read_text()
    table = printed.split("\nprofile ")[0]
    assert table in text and len(printed.splitlines()) < 10
    assert str(work_dir / "profile") in printed
    for name in NETWORKS:
        for label in ("none", POLICY):
            report = profile["networks"][name]["policies"][label]["report"]
            row = next(r for r in table.splitlines() if f"| {name} |" in r and f" {label} " in r)
            assert f" {report['activation_bytes'] / 2**20:.3f} |" in row
            assert f"## Residuals: {name}, {label}" in text
    assert "over 2 batches" in text
    assert text.count("|---") >= 8 and "| dense " in text


def cheap(monkeypatch):
    """Records the stages and measures nothing."""
    seen = {}

    def measured(networks, remat, profile, mesh):
        seen.update(networks)
        raise KeyboardInterrupt

    monkeypatch.setattr("mlg_jax.experiment._run.profile_networks", measured)
    return seen


def networks_seen(monkeypatch, config, directory):
    seen = cheap(monkeypatch)
    with pytest.raises(TrainingInterrupted):
        run_experiment(config, directory, mode="profile")
    return seen


def store(run, name, model):
    """Writes a checkpoint with variables that differ from fresh ones."""
    variables = jax.tree.map(lambda leaf: leaf + 1.0, run._fresh(model))
    state = create_state(
        params=variables.pop("params"),
        model_state=variables,
        optimizer=optax.sgd(0.1),
        key=jax.random.key(0),
    )
    with Checkpointer(run._checkpoints(name)) as checkpoints:
        checkpoints.save(state, meta={}, score=0.5)


def test_a_training_is_used_and_left_as_it_was(tmp_path, monkeypatch):
    plain = small(remat={"policy": "none"})
    config = parse_config(plain)
    run = _Experiment(config, tmp_path)
    store(run, "teacher", run._teacher)
    start = flax.traverse_util.flatten_dict(run._fresh(run._student), sep="/")
    (tmp_path / "projection").mkdir()
    np.savez(tmp_path / "projection/projected.npz", **start)
    seal(tmp_path / "projection")
    seen = networks_seen(monkeypatch, config, tmp_path)
    assert seen["teacher"].source == "the best checkpoint of the teacher"
    assert seen["student"].source == "the projection of the teacher"
    store(run, "student", run._student)
    before = contents(tmp_path)
    other = parse_config(small())  # another policy: a training would refuse the directory
    seen = networks_seen(monkeypatch, other, tmp_path)
    assert seen["student"].source == "the best checkpoint of the student"
    for name, network in seen.items():
        stored = run._loaded(run._checkpoints(name), network.model)
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, stored, network.variables)))
    assert contents(tmp_path) == before
    given = small(projection={"num_steps": 2})
    given["teacher"]["checkpoint"] = str(tmp_path / "teacher/checkpoints")
    elsewhere = _Experiment(parse_config(given), tmp_path / "other")
    assert elsewhere._teacher_so_far()[1] == "the best checkpoint of `teacher.checkpoint`"
    shutil.rmtree(tmp_path / "teacher/checkpoints")
    (tmp_path / "teacher/checkpoints/3.damaged").mkdir(parents=True)
    assert run._teacher_so_far()[1] == "fresh"


def test_a_micro_batch_is_measured_by_the_parameters_that_train(tmp_path, monkeypatch):
    raw = small()
    raw["student"]["trainable"] = "classifier"
    raw["student"]["train"]["accumulation_steps"] = 2
    seen = networks_seen(monkeypatch, parse_config(raw), tmp_path)
    args = _profile._arguments(seen["student"], make_mesh())
    trained, frozen, _, _, batch = args
    assert batch["image"].shape == (4, 8, 8, 3) and batch["teacher_logits"].shape == (4, 4)
    names = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(trained)]
    assert names and all("classifier" in name for name in names)
    assert len(jax.tree.leaves(frozen)) > len(names)
    *fixed, other = _profile._shapes(args, 2)
    assert other["image"].shape == (2, 8, 8, 3) and other["label"].shape == (2,)
    same = jax.tree.map(lambda shape, leaf: shape.shape == leaf.shape, fixed, list(args[:-1]))
    assert all(jax.tree.leaves(same))


def test_small_operations_are_drawn_together():
    sizes = {f"op{i}": 2**i for i in range(10)}
    report = types.SimpleNamespace(bytes_by_operation=sizes)
    network = types.SimpleNamespace(policies={"none": types.SimpleNamespace(report=report)})
    drawn = _profile_report._operations(network)["none"]
    assert list(drawn) == [f"op{i}" for i in range(9, 1, -1)] + ["other"]
    assert drawn["other"] == 3 and sum(drawn.values()) == sum(sizes.values())


def test_the_table_names_what_a_budget_chose():
    report = {"total_residual_bytes": 2**20, "activation_bytes": 2**19, "compiled": None}
    policies = {"auto": {"preset": "convs", "batch_size": 8, "report": report}}
    table = _profile_report.profile_table({"networks": {"teacher": {"policies": policies}}})
    row = [cell.strip() for cell in table.splitlines()[-1].split("|")[1:-1]]
    assert row == ["teacher", "auto: convs", "8", "1.000", "0.500", "not known", "not known"]


def test_batch_sizes_split_over_the_devices():
    assert _profile._batch_sizes(128, 1) == [1, 8, 32, 128]
    assert _profile._batch_sizes(32, 1) == [1, 8, 32]
    assert _profile._batch_sizes(24, 4) == [4, 8, 24, 32]


@pytest.mark.bad_input
def test_bad_input(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(WorkDirError, match="Cannot make .*file/profile: "):
        run_experiment(parse_config(small()), file, mode="profile")
    raw = small()
    raw["teacher"]["checkpoint"] = str(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="there is no such directory"):
        run_experiment(parse_config(raw), tmp_path / "run", mode="profile")
    config = parse_config(small())
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="--mode=profile must run in one process; got 2"):
        _profile.profile_networks({}, config.remat, config.profile, None)
    monkeypatch.undo()
    config = parse_config(small(profile={"target": "h100"}))
    several = types.SimpleNamespace(size=4)
    with pytest.raises(ConfigError, match="for a target must run on one device; got 4"):
        _profile.profile_networks({}, config.remat, config.profile, several)
    with pytest.raises(ConfigError, match="`target` must be one of .*'h100'.*; got 'h1000'"):
        parse_config(small(profile={"target": "h1000"}))
    with pytest.raises(ConfigError, match="`num_batches` must be"):
        parse_config(small(profile={"num_batches": 0}))
