"""Checkpoints: which are kept, which are refused, and what remains after a failing disk."""

import json
import logging
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax.train import (
    Checkpointer,
    CheckpointError,
    OptimizerSpec,
    ScheduleSpec,
    WorkDirError,
    bind_work_dir,
    create_state,
    fingerprint,
    load_variables,
    make_mesh,
    make_optimizer,
    make_schedule,
    replicate,
)
from tests.train import toy

META = {"epoch": 1}

# After a failed read or write, Orbax closes its event loop while TensorStore still reports to it.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)


def make_state(step=0, *, hidden=toy.HIDDEN, seed=0, name="radam"):
    schedule = make_schedule(ScheduleSpec(), num_epochs=1, steps_per_epoch=1)
    params = jax.tree.map(lambda p: p + seed, toy.make_params(hidden))
    state = create_state(
        params=params,
        model_state=toy.make_model_state(),
        optimizer=make_optimizer(OptimizerSpec(name=name), schedule),
        key=jax.random.key(seed),
    )
    return replicate(state.replace(step=jnp.int32(step)), make_mesh())


def save_all(directory, steps, **kwargs):
    with Checkpointer(directory, **kwargs) as checkpoints:
        for step, score in steps:
            checkpoints.save(make_state(step, seed=step), meta=META, score=score)
        return checkpoints.steps, checkpoints.best_step


def test_round_trip_is_bit_exact_and_keeps_placement(tmp_path):
    state = make_state(3, seed=1)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(state, meta={"epoch": 2, "name": "ä"})
    with Checkpointer(tmp_path) as checkpoints:
        restored, meta = checkpoints.restore(make_state())
    toy.assert_equal(restored, state)
    assert meta == {"epoch": 2, "name": "ä", "step": 3}
    for leaf, like in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert leaf.sharding == like.sharding and leaf.dtype == like.dtype
    assert jax.random.uniform(restored.key) == jax.random.uniform(state.key)


def test_nothing_there_is_none(tmp_path):
    with Checkpointer(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(make_state()) is None
        assert checkpoints.best_step is None


@pytest.mark.parametrize(
    ("mode", "scores", "kept", "best"),
    [
        ("max", [0.1, 0.5, 0.3, 0.2, 0.4], [2, 4, 5], 2),
        ("min", [0.5, 0.1, 0.3, 0.2, 0.4], [2, 4, 5], 2),
        ("max", [0.5, 0.5, 0.1, 0.1, 0.1], [2, 4, 5], 2),  # the latest of equal scores
        ("max", [None, 0.2, None, float("nan"), None], [2, 4, 5], 2),
        ("max", [None, None, None, None, None], [4, 5], None),
    ],
)
def test_the_two_latest_and_the_best_are_kept(tmp_path, mode, scores, kept, best):
    """Even if each is written by another process, which must read the scores of earlier ones."""
    for step, score in enumerate(scores, start=1):
        result = save_all(tmp_path, [(step, score)], best_mode=mode)
    assert result[1] == best
    assert set(result[0]) - {best} == set(kept) - {best}
    assert best is None or best in result[0]


def test_load_variables_reads_the_model_alone(tmp_path):
    save_all(tmp_path, [(1, 0.9), (2, 0.1), (3, 0.1)])
    for which, step in (("best", 1), ("latest", 3)):
        params, model_state, meta = load_variables(tmp_path, which=which)
        expected = make_state(step, seed=step)
        toy.assert_equal(params, expected.params)
        toy.assert_equal(model_state, expected.model_state)
        assert meta == {"epoch": 1, "step": step}


def damage_arrays(path):
    """Truncates every file of array data to a few bytes."""
    files = [f for f in path.rglob("d/*") if f.is_file()]
    assert files
    for file in files:
        with file.open("r+b") as stream:
            stream.truncate(7)


def damage_meta(path):
    (path / "meta" / "metadata").write_text('{"epoch": ')


def damage_all(path):
    shutil.rmtree(path)
    path.mkdir()


@pytest.mark.parametrize("damage", [damage_arrays, damage_meta, damage_all])
def test_a_damaged_latest_checkpoint_is_set_aside(tmp_path, caplog, damage):
    save_all(tmp_path, [(1, None), (2, None)])
    damage(tmp_path / "2")
    with caplog.at_level(logging.WARNING), Checkpointer(tmp_path) as checkpoints:
        restored, meta = checkpoints.restore(make_state())
        assert meta["step"] == 1
        toy.assert_equal(restored, make_state(1, seed=1))
        assert "checkpoint of step 2" in caplog.text and "damaged" in caplog.text
        checkpoints.save(make_state(2, seed=2), meta=META)  # the step can be written again
        assert checkpoints.restore(make_state())[1]["step"] == 2
    assert (tmp_path / "2.damaged").is_dir()


def test_a_checkpoint_killed_while_written_is_ignored(tmp_path):
    save_all(tmp_path, [(1, None)])
    # Orbax leaves these if the process dies before it commits.
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    damage_arrays(tmp_path / "2.orbax-checkpoint-tmp")
    for name in ("2.0123abcd.tmp", "2.damaged", "of the user.tmp"):
        (tmp_path / name).mkdir()
    with Checkpointer(tmp_path) as checkpoints:
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"1", "2.damaged", "of the user.tmp"}  # only the unfinished ones are gone
        assert checkpoints.restore(make_state())[1]["step"] == 1
        checkpoints.save(make_state(2, seed=2), meta=META)
        assert checkpoints.steps == [1, 2]


@pytest.mark.bad_input
def test_only_damaged_checkpoints_do_not_start_over_silently(tmp_path):
    save_all(tmp_path, [(1, None), (2, None)])
    for step in (1, 2):
        damage_arrays(tmp_path / str(step))
    with (
        Checkpointer(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match=r"steps \[1, 2\] are damaged"),
    ):
        checkpoints.restore(make_state())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"hidden": 8},
            r"'params/first/bias' must be float32\[8\]; got float32\[16\]",
        ),
        ({"name": "sgd"}, r"another model or optimiser: 'opt_state/.*' must be .*; got absent"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, other, message):
    save_all(tmp_path, [(1, None), (2, None)])
    with Checkpointer(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore(make_state(**other))
        assert checkpoints.steps == [1, 2]  # it is undamaged, so nothing was set aside


@pytest.mark.bad_input
def test_other_error_messages(tmp_path):
    save_all(tmp_path / "a", [(1, None)])
    with Checkpointer(tmp_path / "a") as checkpoints:
        with pytest.raises(CheckpointError, match=r"No checkpoint of step 7 .* there are \[1\]"):
            checkpoints.restore(make_state(), step=7)
    with pytest.raises(ValueError, match="`best_mode` must be one of .*'most'"):
        Checkpointer(tmp_path / "a", best_mode="most")
    with pytest.raises(CheckpointError, match="there is no such directory"):
        load_variables(tmp_path / "b")
    (tmp_path / "c").mkdir()
    with pytest.raises(CheckpointError, match="No complete checkpoint"):
        load_variables(tmp_path / "c")
    with pytest.raises(ValueError, match="`which` must be one of .*'worst'"):
        load_variables(tmp_path / "a", which="worst")
    damage_arrays(tmp_path / "a" / "1")
    with pytest.raises(CheckpointError, match="checkpoint of step 1 in .* is damaged"):
        load_variables(tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Cannot create"):
        Checkpointer(tmp_path / "file")


@pytest.fixture
def full_disk():
    """Causes real write errors: no file of this process may grow past 2 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def set_full(is_full):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048 if is_full else soft, hard))

    yield set_full
    set_full(False)
    signal.signal(signal.SIGXFSZ, previous)


@pytest.mark.bad_input
def test_no_space_leaves_the_last_good_checkpoint(tmp_path, full_disk, capfd):
    def wide(step):
        state = make_state(step, seed=step)
        noise = jnp.asarray(np.random.default_rng(step).normal(size=20_000), jnp.float32)
        return state.replace(model_state={"noise": noise})  # incompressible

    template = wide(0)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(wide(1), meta=META, score=0.5)
        full_disk(True)
        with pytest.raises(
            CheckpointError, match=r"checkpoint of step 2 .*disk full.* last good one has step 1"
        ):
            checkpoints.save(wide(2), meta=META, score=0.9)
        full_disk(False)
        assert checkpoints.steps == [1] and checkpoints.best_step == 1
    with Checkpointer(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(template)
        toy.assert_equal(restored, wide(1))
        checkpoints.save(wide(2), meta=META)  # now there is space
        assert checkpoints.steps == [1, 2]


@pytest.mark.bad_input
def test_a_work_directory_of_another_experiment(tmp_path):
    config = {"lr": 0.1, "model": {"name": "a", "width": 1}}
    bind_work_dir(tmp_path, config)
    reordered = {"model": {"width": 1, "name": "a"}, "lr": 0.1}
    bind_work_dir(tmp_path, reordered)
    with pytest.raises(WorkDirError, match="another experiment: `model.width` was 1, now 2"):
        bind_work_dir(tmp_path, {"lr": 0.1, "model": {"name": "a", "width": 2}})
    with pytest.raises(WorkDirError, match="`seed` was 'absent', now 3"):
        bind_work_dir(tmp_path, {**config, "seed": 3})
    with pytest.raises(TypeError):
        bind_work_dir(tmp_path, {"lr": object()})
    (tmp_path / "fingerprint.json").write_text("{")
    with pytest.raises(WorkDirError, match="not readable"):
        bind_work_dir(tmp_path, config)


def test_fingerprints_tell_configurations_apart():
    digest = fingerprint({"b": 1, "a": [1.5, None]})
    assert digest == fingerprint(json.loads('{"a": [1.5, null], "b": 1}'))
    assert len(digest) == 64 and digest != fingerprint({"b": 1, "a": [1.5, 0]})
