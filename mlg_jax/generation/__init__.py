"""Kernels generated in place from quantised bases and coefficients."""

from mlg_jax.generation._apply import apply_built as apply_built
from mlg_jax.generation._apply import convolve as convolve
from mlg_jax.generation._apply import convolve_as as convolve_as
from mlg_jax.generation._apply import from_layout as from_layout
from mlg_jax.generation._apply import to_layout as to_layout
from mlg_jax.generation._choose import IMPLEMENTATIONS as IMPLEMENTATIONS
from mlg_jax.generation._choose import choose_implementation as choose_implementation
from mlg_jax.generation._choose import cost_features as cost_features
from mlg_jax.generation._choose import distinct_implementations as distinct_implementations
from mlg_jax.generation._choose import multiply_adds as multiply_adds
from mlg_jax.generation._cost import factor_records as factor_records
from mlg_jax.generation._cost import generation_multiply_adds as generation_multiply_adds
from mlg_jax.generation._generate import check_factors as check_factors
from mlg_jax.generation._generate import generate_kernel as generate_kernel
from mlg_jax.generation._implementations import apply_generated as apply_generated
from mlg_jax.generation._orthogonality import orthogonality_penalty as orthogonality_penalty
from mlg_jax.generation._project import Factors as Factors
from mlg_jax.generation._project import project_kernel as project_kernel
from mlg_jax.generation._projection_spec import ProjectionSpec as ProjectionSpec
from mlg_jax.generation._spec import INITS as INITS
from mlg_jax.generation._spec import FactorShapes as FactorShapes
from mlg_jax.generation._spec import GenerationSpec as GenerationSpec
