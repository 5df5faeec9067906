"""The mathematics of the MLG method: kernels generated from bases and coefficients."""

from mlg_jax.generation._choose import IMPLEMENTATIONS as IMPLEMENTATIONS
from mlg_jax.generation._choose import choose_implementation as choose_implementation
from mlg_jax.generation._choose import cost_features as cost_features
from mlg_jax.generation._choose import distinct_implementations as distinct_implementations
from mlg_jax.generation._choose import generation_multiply_adds as generation_multiply_adds
from mlg_jax.generation._choose import multiply_adds as multiply_adds
from mlg_jax.generation._closed_form import Decomposition as Decomposition
from mlg_jax.generation._closed_form import balanced as balanced
from mlg_jax.generation._closed_form import closed_form as closed_form
from mlg_jax.generation._closed_form import decompose_fully as decompose_fully
from mlg_jax.generation._closed_form import rows_of as rows_of
from mlg_jax.generation._factored import apply_factored as apply_factored
from mlg_jax.generation._factored import apply_factored_out as apply_factored_out
from mlg_jax.generation._generate import check_factors as check_factors
from mlg_jax.generation._generate import generate_kernel as generate_kernel
from mlg_jax.generation._generate import pad_bases as pad_bases
from mlg_jax.generation._generate import taps_first as taps_first
from mlg_jax.generation._orthogonality import orthogonality_penalty as orthogonality_penalty
from mlg_jax.generation._project import ProjectedFactors as ProjectedFactors
from mlg_jax.generation._project import ProjectionSpec as ProjectionSpec
from mlg_jax.generation._project import balance_peaks as balance_peaks
from mlg_jax.generation._project import decompose as decompose
from mlg_jax.generation._shapes import FactorShapes as FactorShapes
from mlg_jax.generation._shapes import factor_shapes as factor_shapes
