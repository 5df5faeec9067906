"""The small network and its file, shared by the tests of the engine."""

import pytest

from tests._models import tiny_networks

from . import _trained


@pytest.fixture(scope="package", autouse=True)
def tiny():
    """The name of a small network."""
    with tiny_networks():
        yield "tiny"


@pytest.fixture(scope="package")
def model_and_variables(tiny):
    """The network and its variables."""
    return _trained.trained(tiny)


@pytest.fixture(scope="package")
def path(model_and_variables, tmp_path_factory):
    """The path of the network's packed file."""
    path = tmp_path_factory.mktemp("packed") / "model.mlg"
    assert _trained.saved(path, *model_and_variables) == path.stat().st_size
    return path
