"""Memory accounting: residuals, bytes of compiled programs, and allocator peaks."""

from mlg_jax.memory._compiled import CompiledMemory as CompiledMemory
from mlg_jax.memory._compiled import compiled_memory as compiled_memory
from mlg_jax.memory._compiled import gradient_memory as gradient_memory
from mlg_jax.memory._curves import STORAGES as STORAGES
from mlg_jax.memory._curves import crossover_density as crossover_density
from mlg_jax.memory._curves import storage_bytes as storage_bytes
from mlg_jax.memory._curves import storage_curve as storage_curve
from mlg_jax.memory._density import NUM_BINS as NUM_BINS
from mlg_jax.memory._density import DensityRow as DensityRow
from mlg_jax.memory._density import DensityStats as DensityStats
from mlg_jax.memory._density import densities_to_markdown as densities_to_markdown
from mlg_jax.memory._density import init_densities as init_densities
from mlg_jax.memory._density import summarize_densities as summarize_densities
from mlg_jax.memory._density import update_densities as update_densities
from mlg_jax.memory._device import AllocatorPeak as AllocatorPeak
from mlg_jax.memory._device import allocator_peak as allocator_peak
from mlg_jax.memory._report import MemoryReport as MemoryReport
from mlg_jax.memory._report import memory_report as memory_report
from mlg_jax.memory._residuals import Residual as Residual
from mlg_jax.memory._residuals import list_residuals as list_residuals
from mlg_jax.memory._residuals import residual_densities as residual_densities
from mlg_jax.memory._sweep import BatchMemory as BatchMemory
from mlg_jax.memory._sweep import memory_sweep as memory_sweep
