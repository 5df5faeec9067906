"""Neural networks that need a fraction of the memory: generated weights and packed activations.

Names and sub-packages are imported when they are first used.
"""

import importlib
import pkgutil
import typing

if typing.TYPE_CHECKING:
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

_HOMES = {  # the sub-package of every name
    "pack": "bitmap",
    "unpack": "bitmap",
    "load_packed": "engine",
    "save_packed": "engine",
    "generate_kernel": "generation",
    "orthogonality_penalty": "generation",
    "GenerationSpec": "kernels",
    "project_kernel": "kernels",
    "generated": "layers",
    "memory_report": "memory",
    "create_model": "models",
    "size_report": "models",
    "load_pretrained": "pretrained",
    "QuantSpec": "quant",
    "fake_quantize": "quant",
    "checkpoint": "remat",
}


def __getattr__(name: str) -> typing.Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _subpackages():
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({"__version__", *_HOMES, *_subpackages()})


def _subpackages() -> list[str]:
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in names if not name.startswith("_")]
