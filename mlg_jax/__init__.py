"""Neural networks that need a fraction of the memory: generated weights and packed activations."""

import importlib
import pkgutil
import typing

from mlg_jax.bitmap import pack as pack
from mlg_jax.bitmap import unpack as unpack
from mlg_jax.engine import load_packed as load_packed
from mlg_jax.engine import save_packed as save_packed
from mlg_jax.generation import generate_kernel as generate_kernel
from mlg_jax.generation import orthogonality_penalty as orthogonality_penalty
from mlg_jax.kernels import GenerationSpec as GenerationSpec
from mlg_jax.kernels import project_kernel as project_kernel
from mlg_jax.layers import generated as generated
from mlg_jax.memory import memory_report as memory_report
from mlg_jax.models import create_model as create_model
from mlg_jax.models import size_report as size_report
from mlg_jax.pretrained import load_pretrained as load_pretrained
from mlg_jax.quant import QuantSpec as QuantSpec
from mlg_jax.quant import fake_quantize as fake_quantize
from mlg_jax.remat import checkpoint as checkpoint

__version__ = "0.1.0"


def __getattr__(name: str) -> typing.Any:
    """Imports a sub-package when it is first used: `import mlg_jax; mlg_jax.compress`."""
    if name in _subpackages():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_subpackages()})


def _subpackages() -> list[str]:
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in names if not name.startswith("_")]
