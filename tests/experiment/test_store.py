"""Files of a projection: damaged ones are recomputed or refused, never used."""

import logging

import numpy as np
import pytest

from mlg_jax.compress import Projection
from mlg_jax.experiment._store import (
    ProjectionCheckpoint,
    is_projected,
    load_projection,
    save_projection,
)
from mlg_jax.train import CheckpointError
from tests.train.test_damage import DAMAGES

HISTORY = ((0, 1.5), (100, 0.25))
LEAVES = [np.arange(300, dtype=np.float32), np.int32(7)]
PROJECTION = Projection({"params": {"a": {"b": np.arange(300.0)}}}, {"a": 0.5}, HISTORY)


@pytest.fixture
def store(tmp_path):
    store = ProjectionCheckpoint(tmp_path / "state.npz", is_writable=True)
    store.save(LEAVES, HISTORY)
    return store


@pytest.fixture
def path(tmp_path, store):
    save_projection(tmp_path / "projected.npz", PROJECTION, store)
    return tmp_path / "projected.npz"


def test_the_state_is_read_as_it_was_written(store):
    leaves, history = store.load()
    assert history == HISTORY
    for left, right in zip(leaves, LEAVES, strict=True):
        assert left.dtype == right.dtype and np.array_equal(left, right)


def test_another_process_writes_nothing(tmp_path):
    store = ProjectionCheckpoint(tmp_path / "state.npz", is_writable=False)
    store.save(LEAVES, HISTORY)
    assert store.load() is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("spoil", DAMAGES[:3])
def test_a_damaged_state_starts_the_projection_again(tmp_path, store, spoil, caplog):
    """Wherever the damage is, loading gives nothing or exactly the saved state."""
    path, rng = tmp_path / "state.npz", np.random.default_rng(0)
    whole, num_refused = path.read_bytes(), 0
    for _ in range(50):
        path.write_bytes(whole)
        spoil(path, rng)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mlg_jax"):
            found = store.load()
        if found is None:
            num_refused += 1
            (message,) = caplog.messages
            assert message.startswith(f"{path} is damaged: the projection starts over.")
        else:
            assert found[1] == HISTORY
            assert all(np.array_equal(a, b) for a, b in zip(found[0], LEAVES, strict=True))
    assert num_refused >= 40


def test_a_projection_is_read_as_it_was_written(tmp_path, path):
    assert is_projected(path) and not (tmp_path / "state.npz").exists()
    found = load_projection(path)
    np.testing.assert_array_equal(found["params"]["a"]["b"], np.arange(300.0))


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["projected.npz", "projection.json", "digests.json"])
@pytest.mark.parametrize("spoil", DAMAGES)
def test_a_damaged_projection_is_none(tmp_path, path, name, spoil, caplog):
    spoil(tmp_path / name, np.random.default_rng(1))
    message = "No projection at|projected.npz is damaged .*; --mode=train computes it again"
    with pytest.raises(CheckpointError, match=message):
        load_projection(path)
    with caplog.at_level(logging.WARNING, "mlg_jax"):
        assert not is_projected(path)
    assert "computed again" in caplog.text or not path.exists()


def test_a_kill_before_the_seal_keeps_the_state(tmp_path, store, monkeypatch):
    def die(directory, names):
        raise KeyboardInterrupt

    monkeypatch.setattr("mlg_jax.experiment._store.seal", die)
    with pytest.raises(KeyboardInterrupt):
        save_projection(tmp_path / "projected.npz", PROJECTION, store)
    assert store.load() is not None and not is_projected(tmp_path / "projected.npz")
