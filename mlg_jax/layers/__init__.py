"""Flax Linen layers whose kernels come from injected providers, and the records they leave."""

from mlg_jax.generation import IMPLEMENTATIONS as IMPLEMENTATIONS
from mlg_jax.layers._activation import ActivationQuantizer as ActivationQuantizer
from mlg_jax.layers._conv import Conv as Conv
from mlg_jax.layers._dense import Dense as Dense
from mlg_jax.layers._kernel import DenseKernel as DenseKernel
from mlg_jax.layers._kernel import GeneratedKernel as GeneratedKernel
from mlg_jax.layers._kernel import KernelChoice as KernelChoice
from mlg_jax.layers._kernel import KernelProvider as KernelProvider
from mlg_jax.layers._kernel import KernelsByPath as KernelsByPath
from mlg_jax.layers._norm import BatchNorm as BatchNorm
from mlg_jax.layers._pool import global_mean_pool as global_mean_pool
from mlg_jax.layers._pool import max_pool as max_pool
from mlg_jax.layers._product import check_implementation as check_implementation
from mlg_jax.layers._records import count_implementations as count_implementations
from mlg_jax.layers._records import layer_params as layer_params
from mlg_jax.layers._records import layer_records as layer_records
from mlg_jax.layers._records import total_penalty as total_penalty
from mlg_jax.layers._relu import relu6_by_sign as relu6_by_sign
from mlg_jax.layers._relu import relu_by_sign as relu_by_sign
from mlg_jax.layers._tune import time_implementations as time_implementations
from mlg_jax.layers._tune import tune_implementations as tune_implementations
