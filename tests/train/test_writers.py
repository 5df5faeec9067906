"""Metrics on disk: resumed files, damaged lines, full disks, and TensorBoard."""

import errno
import json
import logging
import math

import pytest

from mlg_jax import train
from mlg_jax.train._writers import MetricsWriter


def test_not_a_number_becomes_null(tmp_path):
    with MetricsWriter(tmp_path, resumed_step=0, num_steps=1) as writer:
        writer.write("train", step=1, metrics={"loss": math.nan, "accuracy": 0.5})
    text = (tmp_path / train.METRICS_FILE).read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "kind": "train",
        "step": 1,
        "loss": None,
        "accuracy": 0.5,
    }


def test_lines_past_the_resumed_step_are_dropped(tmp_path):
    with MetricsWriter(tmp_path, resumed_step=0, num_steps=9) as writer:
        for step in (2, 4, 6):
            writer.write("train", step=step, metrics={"loss": step})
    with (tmp_path / train.METRICS_FILE).open("a") as stream:
        stream.write('{"kind": "train", "st')
    with MetricsWriter(tmp_path, resumed_step=4, num_steps=9) as writer:
        writer.write("train", step=5, metrics={"loss": 5})
    assert [line["step"] for line in train.read_metrics(tmp_path)] == [2, 4, 5]


def test_damaged_lines_are_left_out_and_counted(tmp_path, caplog):
    """Lines after them are kept; a last line truncated by a crash does not count as damaged."""
    good = '{"kind": "train", "step": %d, "loss": 1.0}'
    bad = ["not json", "3", "[]", "{}", '{"kind": "train", "step": "4"}', "\x80\xff", ""]
    lines = [good % 1, *bad, good % 9, '{"kind": "train", "step": 1']
    path = tmp_path / train.METRICS_FILE
    path.write_bytes("\n".join(lines).encode("latin-1"))
    with caplog.at_level(logging.WARNING, "mlg_jax"):
        assert [line["step"] for line in train.read_metrics(tmp_path)] == [1, 9]
    assert len(caplog.messages) == 1
    assert caplog.messages[0] == f"{path}: 7 of 9 lines are damaged and left out."
    with MetricsWriter(tmp_path, resumed_step=9, num_steps=9):
        pass
    caplog.clear()
    assert len(train.read_metrics(tmp_path)) == 2 and not caplog.messages


@pytest.mark.bad_input
def test_a_full_disk_names_the_file(tmp_path):
    """The first error is raised; the failure of closing the file does not replace it."""

    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            raise OSError(errno.EIO, "closed on a full disk")

    def full_writer():
        writer = MetricsWriter(tmp_path, resumed_step=0, num_steps=1)
        writer._file.close()
        writer._file = Full()
        return writer

    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        with full_writer() as writer:
            writer.write("train", step=1, metrics={"loss": 1.0})
    with pytest.raises(OSError, match=r"closed on a full disk: '.*metrics\.jsonl'"):
        with full_writer():
            pass


def test_no_directory_no_metrics(tmp_path):
    assert train.read_metrics(tmp_path) == []


def test_tensorboard_reads_what_was_written(tmp_path):
    """Parses the framing of TensorFlow: length, its checksum, event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    with MetricsWriter(tmp_path, resumed_step=4, num_steps=9) as writer:
        writer.write("train", step=5, metrics={"loss": 0.5, "accuracy": 1})
        writer.write("eval", step=6, metrics={"loss": math.nan})
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, events = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    version, start, *written = events
    assert version.file_version == "brain.Event:2" and path.name.startswith("events.out.tfevents.")
    assert (start.step, start.session_log.status) == (5, 1)
    found = [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in written]
    assert found[0] == (5, {"train/loss": 0.5, "train/accuracy": 1.0})
    assert found[1][0] == 6 and math.isnan(found[1][1]["eval/loss"])
