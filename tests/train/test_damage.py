"""Damage to any file of a checkpoint: a warning names it, and the previous one is used."""

import logging
import shutil

import jax
import numpy as np
import pytest

from mlg_jax.train import Checkpointer, CheckpointError, load_variables
from mlg_jax.train._arrays import digests
from mlg_jax.train._seal import SEAL_FILE, damage, seal
from tests.train import toy
from tests.train.test_checkpoint import make_state, save_all

# One file of every kind in a checkpoint.
KINDS = (
    "_CHECKPOINT_METADATA",
    SEAL_FILE,
    "meta/metadata",
    "metrics/metrics",
    "rest/_METADATA",
    "rest/_sharding",
    "rest/array_metadatas/process_0",
    "rest/manifest.ocdbt",
    "variables/d/*",
    "variables/ocdbt.process_0/d/*",
    "variables/ocdbt.process_0/manifest.ocdbt",
)


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.integers(1, path.stat().st_size)])


def empty(path, rng):
    path.write_bytes(b"")


def delete(path, rng):
    path.unlink()


DAMAGES = (flip, truncate, empty, delete)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Undamaged checkpoints of steps 1 and 2; the second is the best."""
    directory = tmp_path_factory.mktemp("sound")
    save_all(directory, [(1, 0.1), (2, 0.9)])
    return directory


def assert_not_used(directory, caplog):
    """Reading ignores step 2, resuming sets it aside; both log a warning and use step 1."""
    expected = make_state(1, seed=1)
    with caplog.at_level(logging.WARNING, "mlg_jax"):
        params, _, meta = load_variables(directory)
        assert "step 2 in" in caplog.text and "damaged and ignored" in caplog.text
        assert (directory / "2").is_dir()
        with Checkpointer(directory) as checkpoints:
            restored, _ = checkpoints.restore(make_state())
            assert checkpoints.best_step == 1
    assert meta["step"] == 1
    toy.assert_equal(params, expected.params)
    toy.assert_equal(restored, expected)
    assert "step 2 in" in caplog.text and "set aside as 2.damaged" in caplog.text
    assert (directory / "2.damaged").is_dir() and not (directory / "2").exists()
    caplog.clear()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spoil", [flip, delete])
def test_no_damage_is_used(sound, tmp_path, caplog, spoil, kind):
    directory = shutil.copytree(sound, tmp_path / "copy")
    spoil(next((directory / "2").glob(kind)), np.random.default_rng(len(kind)))
    assert_not_used(directory, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("num_flips", [4])
def test_no_damage_of_any_file_is_used(sound, tmp_path, caplog, num_flips):
    """Every file is truncated, emptied and deleted once, and has several bits flipped."""
    rng = np.random.default_rng(0)
    names = sorted(p.relative_to(sound / "2") for p in (sound / "2").rglob("*") if p.is_file())
    cases = [(name, spoil) for name in names for spoil in DAMAGES[1:] + (flip,) * num_flips]
    assert len(cases) >= 200
    for name, spoil in cases:
        directory = shutil.copytree(sound, tmp_path / "copy")
        spoil(directory / "2" / name, rng)
        assert_not_used(directory, caplog)
        shutil.rmtree(directory)


def test_arrays_that_are_not_those_saved_are_not_used(sound, tmp_path, caplog):
    """A fault between memory and disk: the files match their digests, the arrays do not."""
    directory = shutil.copytree(sound, tmp_path / "copy")
    shutil.rmtree(directory / "2/rest")
    shutil.copytree(directory / "1/rest", directory / "2/rest")
    seal(directory / "2")
    with caplog.at_level(logging.WARNING, "mlg_jax"), Checkpointer(directory) as checkpoints:
        restored, _ = checkpoints.restore(make_state())
    toy.assert_equal(restored, make_state(1, seed=1))
    assert "set aside as 2.damaged: its arrays" in caplog.text


@pytest.mark.bad_input
def test_variables_that_are_not_those_saved_are_not_loaded(sound, tmp_path):
    directory = shutil.copytree(sound, tmp_path / "copy")
    shutil.rmtree(directory / "2/variables")
    shutil.copytree(directory / "1/variables", directory / "2/variables")
    seal(directory / "2")
    with pytest.raises(CheckpointError, match=r"arrays of the checkpoint .*copy/2 are damaged"):
        load_variables(directory, which="latest")


def test_a_damaged_best_is_set_aside_with_a_warning(tmp_path, caplog):
    """Even if it is not the latest; from then on the best is chosen from the others."""
    save_all(tmp_path, [(1, 0.9), (2, 0.2), (3, 0.1)])
    empty(tmp_path / "1/metrics/metrics", None)
    with caplog.at_level(logging.WARNING, "mlg_jax"):
        assert load_variables(tmp_path)[2]["step"] == 2
        assert "the checkpoint of step 2 is used" in caplog.text
        with Checkpointer(tmp_path) as checkpoints:
            assert checkpoints.restore(make_state())[1]["step"] == 3
            assert checkpoints.best == (2, 0.2)
    assert "set aside as 1.damaged: metrics/metrics was changed" in caplog.text
    assert load_variables(tmp_path, which="latest")[2]["step"] == 3


def test_a_damaged_score_is_not_deleted_while_training_goes_on(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        for step, score in ((1, 0.9), (2, 0.2)):
            checkpoints.save(make_state(step), meta={}, score=score)
        empty(tmp_path / "1/metrics/metrics", None)
        for step in (3, 4):
            checkpoints.save(make_state(step), meta={}, score=0.1)
        assert checkpoints.steps == [1, 2, 3, 4] and checkpoints.best_step == 2


@pytest.mark.bad_input
def test_all_damaged_is_an_error_at_every_start(sound, tmp_path):
    """Starting again would lose work, so it is refused at every start."""
    directory = shutil.copytree(sound, tmp_path / "copy")
    for step in (1, 2):
        empty(directory / f"{step}/meta/metadata", None)
    with pytest.raises(CheckpointError, match=r"checkpoint of step 2 in .* is damaged \(meta/met"):
        load_variables(directory)
    for _ in range(2):
        with (
            Checkpointer(directory) as checkpoints,
            pytest.raises(CheckpointError, match=r"steps \[1, 2\] are damaged"),
        ):
            checkpoints.restore(make_state())


@pytest.mark.bad_input
def test_a_given_step_that_is_damaged(sound, tmp_path):
    directory = shutil.copytree(sound, tmp_path / "copy")
    empty(directory / "2/meta/metadata", None)
    with Checkpointer(directory) as checkpoints:
        with pytest.raises(CheckpointError, match=r"copy/2 are damaged"):
            checkpoints.restore(make_state(), step=2)
        assert checkpoints.steps == [1, 2] and checkpoints.latest_sound_step == 1
        assert checkpoints.restore(make_state(), step=1)[1]["step"] == 1


def test_the_same_step_is_set_aside_twice(sound, tmp_path):
    directory = shutil.copytree(sound, tmp_path / "copy")
    for name in ("2.damaged", "2.damaged.1"):
        empty(directory / "2/meta/metadata", None)
        with Checkpointer(directory) as checkpoints:
            checkpoints.restore(make_state())
            checkpoints.save(make_state(2), meta={})
        assert (directory / name).is_dir()


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"a": 3}', "{"])
def test_a_seal_that_is_no_seal(tmp_path, text):
    (tmp_path / "a").write_text("x")
    seal(tmp_path)
    assert damage(tmp_path) is None
    (tmp_path / SEAL_FILE).write_text(text)
    assert damage(tmp_path) is not None


def test_files_added_to_a_sealed_directory_are_no_damage(tmp_path):
    (tmp_path / "a").write_text("x")
    seal(tmp_path)
    (tmp_path / "._a").write_text("a file manager's")
    assert damage(tmp_path) is None


def test_every_array_has_a_digest_of_its_own():
    """The digest depends on dtype, shape and bytes."""
    arrays = [
        np.zeros(4, np.float32),
        np.zeros(4, np.int32),
        np.zeros((2, 2), np.float32),
        np.zeros(3, np.float32),
        np.array([0, 0, 0, -0.0], np.float32),
    ]
    found = {digests({"x": array})["x"] for array in arrays}
    assert len(found) == len(arrays)
    assert digests({"x": jax.numpy.zeros(4)})["x"] == digests({"x": arrays[0]})["x"]
