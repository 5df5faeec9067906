"""Parametrisations of a layer's kernel: one interface, one file for each."""

from mlg_jax.kernels._by_path import KernelsByPath as KernelsByPath
from mlg_jax.kernels._by_path import as_spec as as_spec
from mlg_jax.kernels._by_path import bind_or_ordinary as bind_or_ordinary
from mlg_jax.kernels._by_path import matches_path as matches_path
from mlg_jax.kernels._by_path import pairs_from_json as pairs_from_json
from mlg_jax.kernels._by_path import patterns_from_json as patterns_from_json
from mlg_jax.kernels._candidates import CandidateGrid as CandidateGrid
from mlg_jax.kernels._candidates import ClosedForm as ClosedForm
from mlg_jax.kernels._candidates import rounded_kernel as rounded_kernel
from mlg_jax.kernels._circulant import CirculantKernel as CirculantKernel
from mlg_jax.kernels._circulant import CirculantSpec as CirculantSpec
from mlg_jax.kernels._generated import INITS as INITS
from mlg_jax.kernels._generated import GeneratedKernel as GeneratedKernel
from mlg_jax.kernels._generated import GenerationSpec as GenerationSpec
from mlg_jax.kernels._generated import bsconv_u as bsconv_u
from mlg_jax.kernels._generated import project_kernel as project_kernel
from mlg_jax.kernels._kernel import Factor as Factor
from mlg_jax.kernels._kernel import Factors as Factors
from mlg_jax.kernels._kernel import Kernel as Kernel
from mlg_jax.kernels._kernel import KernelSpec as KernelSpec
from mlg_jax.kernels._kernel import LayerRecord as LayerRecord
from mlg_jax.kernels._kernel import implementation_names as implementation_names
from mlg_jax.kernels._ordinary import OrdinaryKernel as OrdinaryKernel
from mlg_jax.kernels._ordinary import OrdinarySpec as OrdinarySpec
from mlg_jax.kernels._torch import TorchModule as TorchModule
