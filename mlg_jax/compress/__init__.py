"""Turning a trained model into a small one."""

from mlg_jax.compress._project import History as History
from mlg_jax.compress._project import Projection as Projection
from mlg_jax.compress._project import ProjectionStore as ProjectionStore
from mlg_jax.compress._project import project_model as project_model
from mlg_jax.generation import ProjectionSpec as ProjectionSpec
