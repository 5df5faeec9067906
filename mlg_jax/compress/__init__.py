"""Compression of trained models."""

from mlg_jax.compress._allocate import Allocation as Allocation
from mlg_jax.compress._allocate import allocate as allocate
from mlg_jax.compress._compress import Compressed as Compressed
from mlg_jax.compress._compress import compress as compress
from mlg_jax.compress._distill import DistillationSpec as DistillationSpec
from mlg_jax.compress._distill import distill as distill
from mlg_jax.compress._fit import fit_generated as fit_generated
from mlg_jax.compress._project import History as History
from mlg_jax.compress._project import Projection as Projection
from mlg_jax.compress._project import ProjectionStore as ProjectionStore
from mlg_jax.compress._project import project_model as project_model
from mlg_jax.compress._sensitivity import Candidate as Candidate
from mlg_jax.compress._sensitivity import LayerChoices as LayerChoices
from mlg_jax.compress._sensitivity import Sensitivity as Sensitivity
from mlg_jax.compress._sensitivity import compressible as compressible
from mlg_jax.compress._sensitivity import measure_sensitivity as measure_sensitivity
from mlg_jax.compress._spec import AllocationSpec as AllocationSpec
from mlg_jax.compress._statistics import estimate_statistics as estimate_statistics
from mlg_jax.generation import ProjectionSpec as ProjectionSpec
