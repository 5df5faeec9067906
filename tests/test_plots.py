"""Figures show the given numbers and are written as PNG files."""

import matplotlib.image
import numpy as np
import pytest

from mlg_jax import plots

MIB = 2**20


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a figure, checks that the file is not a blank picture, and returns the axes."""
    figures = []
    save = plots._save

    def keep(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)

    def draw(plot, *args):
        path = tmp_path / "figure.png"
        plot(path, *args)
        picture = matplotlib.image.imread(path)
        assert picture.shape[0] > 100 and np.ptp(picture[..., :3]) > 0.5
        return figures[-1].axes[0]

    return draw


def test_residuals_are_stacked(drawn):
    reports = {
        "plain": {"argument": MIB, "activation": 8 * MIB},
        "bitmap": {"activation": 2 * MIB, "constant": 4 * MIB},
    }
    axis = drawn(plots.plot_residuals, reports)
    bars = {
        container.get_label(): [(bar.get_y(), bar.get_height()) for bar in container]
        for container in axis.containers
    }
    assert bars == {
        "argument": [(0, 1), (0, 0)],
        "activation": [(1, 8), (0, 2)],
        "constant": [(9, 0), (2, 4)],
    }
    assert [label.get_text() for label in axis.get_xticklabels()] == ["plain", "bitmap"]


def test_storage_curves(drawn):
    axis = drawn(plots.plot_storage, [0, 1], {"dense": [MIB, MIB], "bitmap": [0, 2 * MIB]})
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert lines == {"dense": [1, 1], "bitmap": [0, 2]}
    assert axis.get_ylim()[0] == 0


def test_memory_over_batch_size(drawn):
    kinds = ("parameter", "gradient", "activation", "temporary")
    rows = [
        {"batch_size": n, **{f"{kind}_bytes": n * MIB * (1 + i) for i, kind in enumerate(kinds)}}
        for n in (1, 2, 4)
    ]
    rows[1]["temporary_bytes"] = None
    axis = drawn(plots.plot_batch_memory, rows)
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert list(lines) == list(kinds)
    assert lines["gradient"] == [2, 4, 8]
    assert np.isnan(lines["temporary"][1]) and lines["temporary"][2] == 16
    assert list(axis.lines[0].get_xdata()) == [1, 2, 4]


def test_memory_against_time(drawn):
    axis = drawn(plots.plot_tradeoff, {"none": (0.5, 8 * MIB), "bitmap": (0.75, 2 * MIB)})
    assert [points.get_label() for points in axis.collections] == ["none", "bitmap"]
    assert [tuple(points.get_offsets()[0]) for points in axis.collections] == [(0.5, 8), (0.75, 2)]


def test_densities_have_one_row_per_layer(drawn):
    axis = drawn(plots.plot_densities, {"stem": [0, 3], "block": [2, 1]})
    np.testing.assert_array_equal(axis.images[0].get_array(), [[0, 3], [2, 1]])
    assert [text.get_text() for text in axis.get_yticklabels()] == ["stem", "block"]


def test_speedups_have_one_point_per_layer(drawn):
    axis = drawn(plots.plot_speedups, {"factored": [(4, 2), (8, 3)], "factored_out": [(2, 0.5)]})
    offsets = [points.get_offsets().tolist() for points in axis.collections]
    assert offsets == [[[4, 2], [8, 3]], [[2, 0.5]]]
    assert [text.get_text() for text in axis.get_legend().texts] == ["factored", "factored_out"]
    assert list(axis.lines[0].get_ydata()) == [1, 1]
