"""The examples in the docstrings run, and every public name is documented."""

import doctest
import inspect

import jax
import jax.numpy as jnp
import pytest

from mlg_jax import memory

FUNCTIONS = sorted(n for n, v in vars(memory).items() if inspect.isfunction(v))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_run(name):
    value = getattr(memory, name)
    globs = {"jax": jax, "jnp": jnp, "memory_report": memory.memory_report}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in doctest.DocTestFinder(recurse=False).find(value, name, globs=globs):
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_are_annotated_and_described(name):
    value = getattr(memory, name)
    for parameter in inspect.signature(value).parameters.values():
        assert parameter.annotation is not parameter.empty
        assert name == "densities_to_markdown" or f"{parameter.name}: " in value.__doc__
