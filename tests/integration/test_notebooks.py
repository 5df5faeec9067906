"""Every notebook runs from its first cell to its last on a CPU."""

import pathlib

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(path, as_version=4)
    stored = [cell for cell in notebook.cells if cell.get("outputs")]
    assert not stored, "notebooks are committed without outputs"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 3
    printed = "".join(o.get("text", "") for o in outputs)
    assert "555,520 of 11,173,952 parameters" in printed


def test_notebooks_have_a_badge_and_an_install_cell():
    for path in NOTEBOOKS:
        text = path.read_text()
        assert f"blob/main/notebooks/{path.name}" in text and "%pip install" in text
