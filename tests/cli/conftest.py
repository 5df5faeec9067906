"""Fixtures of the engine's tests (a small network and its file) for the command line."""

from tests.engine.conftest import model_and_variables as model_and_variables
from tests.engine.conftest import path as path
from tests.engine.conftest import tiny as tiny
