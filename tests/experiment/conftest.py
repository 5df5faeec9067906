"""A network that compiles fast, and a cache of compiled programs."""

import pytest

from tests._models import tiny_networks
from tests.train.conftest import compilation_cache as compilation_cache


@pytest.fixture(scope="package", autouse=True)
def tiny():
    """Registers the network "tiny" with `create_model`."""
    with tiny_networks():
        yield
