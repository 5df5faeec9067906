"""A network that compiles in half the time of the smallest of ours."""

import pytest

from tests._models import tiny_networks


@pytest.fixture(scope="package", autouse=True)
def tiny():
    """`create_model` knows "tiny"."""
    with tiny_networks():
        yield
