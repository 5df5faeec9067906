"""Documentation: its code runs, and its links and commands exist."""

import pathlib
import pkgutil
import re
import tomllib

import pytest

from mlg_jax.cli._main import COMMANDS
from mlg_jax.config import to_json
from mlg_jax.experiment import load_config

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
PROGRAMS = [
    README,
    *(ROOT / "docs" / name for name in ("extending.md", "guides/models.md", "tutorial.md")),
]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "mlg_jax").rglob("*.md")]
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_named_files_exist(path):
    pattern = r"`(?:python |pytest )?((?:benchmarks|tests|configs|docs)/[\w/.]+\.\w+)"
    for target in re.findall(pattern, path.read_text()):
        assert (ROOT / target).exists(), f"{path.name} names {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_named_objects_exist(path):
    for name in set(re.findall(r"\bmlg_jax(?:\.[A-Za-z_]\w*)+", path.read_text())):
        assert pkgutil.resolve_name(name) is not None, f"{path.name} names {name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_named_options_exist(path):
    text = path.read_text()
    assert set(re.findall(r"\bmlg (\w+) \w+\.mlg", text)) <= set(COMMANDS)
    tree = to_json(load_config(ROOT / "configs/quickstart.py"))
    for key in set(re.findall(r"--config\.(\w+(?:\.\w+)+)=", text)) - {"a.b"}:
        first, second, *_ = key.split(".")
        assert second in tree[first], f"{path.name} names --config.{key}"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: p.name)
def test_code_runs(tmp_path, monkeypatch, path):
    """Runs the blocks in order, as a reader would."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    assert blocks
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, path.name, "exec"), names)


def test_the_repositorys_address_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project["urls"]["Repository"].removeprefix("https://github.com/")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert set(re.findall(r"github(?:\.com)?/([\w-]+/[\w-]+)", path.read_text())) == {address}


def test_the_build_runs_the_readmes_test_command():
    first, second = re.findall(r"^    (pip install .*|pytest.*)$", README.read_text(), re.MULTILINE)
    build = (ROOT / ".ci/run").read_text().splitlines()
    assert second in build
    config = re.search(r"--config=(\S+)", first).group(1)
    assert first.startswith('pip install -e ".[test]" && python launch.py')
    assert (ROOT / config).exists()
