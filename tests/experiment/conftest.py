"""A network that compiles fast, and a cache of what was compiled."""

import pytest

from tests._models import tiny_networks
from tests.train.conftest import compilation_cache as compilation_cache


@pytest.fixture(scope="package", autouse=True)
def tiny():
    """`create_model` knows "tiny"."""
    with tiny_networks():
        yield
