"""Imports point down, third-party libraries stay where they belong, files stay small."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "mlg_jax"
LEVELS = [
    {
        "_types",
        "_checks",
        "_errors",
        "_atomic",
        "_ordering",
        "_dataclass_json",
        "_tables",
        "_platform",
        "_image_files",
        "_labels",
    },
    {"_linear_vjp", "_convolution_cpu"},
    {"_convolution"},
    {"quant", "generation", "bitmap", "losses", "data"},
    {"kernels"},
    {"layers", "remat", "memory", "export"},
    {"models", "train", "plots", "nnx"},
    {"config", "compress", "planner", "engine"},
    {"pretrained"},
    {"experiment"},
    {"cli"},
]
LEVEL = {unit: level for level, units in enumerate(LEVELS) for unit in units}
SAME_LEVEL = {("generation", "quant")}
ONLY_IN = {
    "optax": {"train", "compress"},
    "orbax": {"train"},
    "matplotlib": {"plots"},
    "tensorflow_datasets": {"data"},
    "grain": {"data"},
    "sklearn": {"data"},
    "safetensors": {"export"},
    "onnx": {"engine"},
    "ml_collections": {"config", "experiment"},
    "tensorboardX": {"train"},
    "tqdm": {"train"},
}
FILES = sorted(ROOT.rglob("*.py"))


def unit_of(path):
    """The top-level unit a file belongs to; None for the package's own __init__."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return None if first == "__init__" else first


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "mlg_jax":
                yield from (f"mlg_jax.{alias.name}" for alias in node.names)


def names(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=names)
def test_imports_point_down(path):
    unit = unit_of(path)
    if unit is None:
        return
    assert unit in LEVEL, f"{unit} has no level in the architecture"
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] != "mlg_jax" or len(parts) == 1:
            continue
        other = parts[1]
        is_down = LEVEL[other] < LEVEL[unit] or other == unit or (unit, other) in SAME_LEVEL
        assert is_down, f"{unit} (L{LEVEL[unit]}) imports {other} (L{LEVEL[other]})"


@pytest.mark.parametrize("path", FILES, ids=names)
def test_third_party_libraries_stay_where_they_belong(path):
    unit = unit_of(path)
    for module in imported_modules(path):
        library = module.split(".")[0]
        assert unit in ONLY_IN.get(library, {unit}), f"{unit} imports {library}"
        if library == "flax" and LEVEL.get(unit, 9) < LEVEL["layers"]:
            assert module == "flax.struct", f"{unit} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=names)
def test_files_and_functions_stay_small(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            has_docstring = ast.get_docstring(node) and len(node.body) > 1
            start = node.body[1].lineno if has_docstring else node.lineno
            assert node.end_lineno - start <= 60, node.name


def test_contributing_has_the_map():
    text = (ROOT.parent / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.MULTILINE)
    assert {unit: int(level) for level, unit in rows} == LEVEL and len(rows) == len(LEVEL)


def test_no_future_annotations():
    for path in FILES:
        assert "__future__" not in set(imported_modules(path)), path


def test_the_numeric_core_imports_without_the_data_and_training_libraries():
    """A CUDA machine has jax, flax and optax, and not always the rest."""
    heavy = sorted(set(ONLY_IN) - {"optax"})
    code = f"import sys\nfor name in {heavy}: sys.modules[name] = None\nimport mlg_jax\n"
    import subprocess
    import sys

    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_nothing_but_kernels_names_a_factor():
    """So that a new parametrisation is one file in `kernels`, whose mathematics `generation` is."""
    pattern = re.compile(r"\b(basis|coeff_in|coeff_out)\b")
    for path in FILES:
        if unit_of(path) in ("kernels", "generation"):
            continue
        tree = ast.parse(path.read_text())
        named = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
        named += [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
        docstrings = {ast.get_docstring(n, clean=False) for n in ast.walk(tree) if has_docstring(n)}
        found = [
            n for n in named if isinstance(n, str) and n not in docstrings if pattern.fullmatch(n)
        ]
        assert not found, f"{path} names {found}"


def has_docstring(node):
    return isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
