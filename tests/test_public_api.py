"""The names users import, their signatures, and the documentation every one of them owes."""

import ast
import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import mlg_jax

SIGNATURES = {
    "QuantSpec": "(bits, scheme, ratio)",
    "GenerationSpec": "(base_in, base_out, basis, coeff_in, coeff_out, init)",
    "fake_quantize": "(x, spec, *, key)",
    "generate_kernel": "(basis, coeff_in, coeff_out)",
    "orthogonality_penalty": "(basis, coeff_in, coeff_out)",
    "project_kernel": "(kernel, spec)",
    "create_model": (
        "(name, *, num_classes, stem, width, generation, weight_bits, activation_bits, "
        "implementation, remat, dtype)"
    ),
    "generated": "(model, kernels, *, weight_bits, implementation)",
    "size_report": "(model, variables, *, input_shape)",
    "pack": "(x, *, capacity, implementation)",
    "unpack": "(bitmap, *, implementation)",
    "checkpoint": "(fn, *, policy, capacity, activations, key)",
    "memory_report": "(fn, args, *, argnums, has_aux, target)",
    "save_packed": (
        "(path, model, variables, *, preprocessing, class_names, metrics, input_shape, "
        "float_bits, card)"
    ),
    "load_pretrained": "(name, *, residency, fold, implementation, batch_sizes)",
    "load_packed": "(path, *, residency, fold, implementation, batch_sizes, model)",
}
PUBLIC = sorted(name for name in dir(mlg_jax) if not name.startswith("_"))


def shape_of_signature(function):
    parts, seen_star = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not seen_star:
            parts.append("*")
            seen_star = True
        parts.append(parameter.name)
    return f"({', '.join(parts)})"


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    assert shape_of_signature(getattr(mlg_jax, name)) == SIGNATURES[name]


def test_subpackages_are_imported_when_they_are_used():
    code = (
        "import sys, mlg_jax; assert not {'jax', 'mlg_jax.compress'} & set(sys.modules);"
        "print(mlg_jax.compress.project_model.__name__, 'train' in dir(mlg_jax))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["project_model", "True"]
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        mlg_jax.compres  # noqa: B018


def test_type_checkers_see_what_is_imported_when_used():
    tree = ast.parse(inspect.getsource(mlg_jax))
    seen = {
        alias.asname: node.module.removeprefix("mlg_jax.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == mlg_jax._HOMES


def test_nothing_else_is_public():
    functions = {n for n in PUBLIC if not inspect.ismodule(getattr(mlg_jax, n))}
    assert functions == set(SIGNATURES)


@pytest.mark.parametrize("name", SIGNATURES)
def test_docstring_has_what_a_user_needs(name):
    value = getattr(mlg_jax, name)
    text = inspect.getdoc(value)
    assert "Args:" in text and "Raises:" in text and "https://arxiv.org" in text
    if inspect.isfunction(value):
        assert "Returns:" in text
    for parameter in inspect.signature(value).parameters:
        assert parameter in text, f"{parameter} is not documented"


@pytest.mark.parametrize("name", SIGNATURES)
def test_examples_run(name):
    value = getattr(mlg_jax, name)
    globs = {"jax": jax, "jnp": jnp} | {n: getattr(mlg_jax, n) for n in SIGNATURES}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in doctest.DocTestFinder(recurse=False).find(value, name, globs=globs):
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0


def test_every_argument_is_annotated():
    for name in SIGNATURES:
        for parameter in inspect.signature(getattr(mlg_jax, name)).parameters.values():
            assert parameter.annotation is not parameter.empty, (name, parameter.name)


def test_specs_are_frozen_and_hashable():
    for spec in (mlg_jax.QuantSpec(3), mlg_jax.GenerationSpec(2, 44)):
        assert isinstance(hash(spec), int)
        field = dataclasses.fields(spec)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(spec, field, 5)


def test_version_and_types_are_shipped():
    import importlib.metadata
    import importlib.resources

    assert importlib.metadata.version("mlg-jax") == mlg_jax.__version__
    assert importlib.resources.files("mlg_jax").joinpath("py.typed").is_file()


def exported():
    """Everything that a package's `__init__` or a module without underscore exports."""
    names = [f"mlg_jax.{m.name}" for m in pkgutil.iter_modules(mlg_jax.__path__)]
    for name in names:
        if name.rpartition(".")[2].startswith("_"):
            continue
        module = importlib.import_module(name)
        for key, value in sorted(vars(module).items()):
            is_ours = getattr(value, "__module__", "").startswith("mlg_jax")
            if is_ours and not key.startswith("_") and callable(value):
                yield pytest.param(value, id=f"{name}.{key}")


@pytest.mark.parametrize("value", list(exported()))
def test_every_exported_name_is_documented(value):
    text = inspect.getdoc(value)
    assert text and text.split("\n")[0].endswith((".", ":", "?")), "one sentence first"
    if inspect.isclass(value):
        assert value.__doc__ and not value.__doc__.startswith(f"{value.__name__}("), "not generated"
