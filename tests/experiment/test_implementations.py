"""Measured implementations of a student's layers: measured once, then kept."""

import jax
import pytest

from mlg_jax.config import ConfigError, parse_config
from mlg_jax.experiment import _run
from mlg_jax.experiment._implementation import FILE
from mlg_jax.layers import _tune, layer_records
from tests.experiment.test_run import settings


@pytest.fixture
def timed(monkeypatch):
    """Pretends that `factored_out` is fastest for shortcuts and `generate` for all other layers."""
    rows = []

    def timings(record, *, dtype, is_training):
        assert is_training
        rows.append(record.input_shape[0])
        return {"generate": 2.0, "factored_out": 1.0 if "shortcut" in record.name else 3.0}

    monkeypatch.setattr(_tune, "time_implementations", timings)
    return rows


def measured():
    raw = settings()
    raw["generation"]["implementation"] = "measured"
    raw["student"]["train"] = {**raw["student"]["train"], "accumulation_steps": 2}
    return parse_config(raw)


def test_a_claimed_directory_remembers(tmp_path, timed):
    _run.bind_work_dir(tmp_path, measured().determining_json)
    students = [_run._Experiment(measured(), tmp_path)._student for _ in range(2)]
    assert students[0] == students[1]
    found = {r.name: r.implementation for r in layer_records(students[0]) if r.implementation}
    assert found["stage2_block1/shortcut_conv"] == "factored_out"
    assert {e for name, e in found.items() if "shortcut" not in name} == {"generate"}
    assert set(timed) == {32 // 2 // jax.device_count()} and len(timed) <= len(found)
    assert (tmp_path / FILE).exists()


def test_another_directory_stays_as_it_was(tmp_path, timed):
    _ = _run._Experiment(measured(), tmp_path)._student
    assert timed and not list(tmp_path.iterdir())


@pytest.mark.bad_input
def test_processes_would_find_different_ones(tmp_path, timed, monkeypatch):
    monkeypatch.setattr("mlg_jax.experiment._implementation.jax.process_count", lambda: 2)
    with pytest.raises(ConfigError, match="generation.implementation must be .* got 'measured'"):
        _ = _run._Experiment(measured(), tmp_path)._student
    assert not timed
