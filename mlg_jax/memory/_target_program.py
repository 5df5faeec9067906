"""Compiles a function for a GPU that is not there, in a process of its own."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import export

from mlg_jax._errors import printable
from mlg_jax._platform import traced_for
from mlg_jax.memory import _target_worker
from mlg_jax.memory._bytes import CompiledMemory
from mlg_jax.memory._program import make_program
from mlg_jax.memory._schedule import Schedule, read_schedule
from mlg_jax.memory.targets import Target, find_target, to_text

_PLUGINS = {12: "jax_plugins.xla_cuda12", 13: "jax_plugins.xla_cuda13"}


class TargetError(RuntimeError):
    """A program could not be compiled for a target."""


@dataclasses.dataclass(frozen=True)
class TargetProgram:
    """A program compiled for a GPU. It cannot be run here."""

    target: Target
    memory: CompiledMemory
    text: str  # of the optimised, scheduled program, in HLO's notation

    @functools.cached_property
    def schedule(self) -> Schedule:
        """Its kernels, and what is alive at its peak."""
        return read_schedule(self.text)


def compile_for(
    target: str,
    fn: Callable[..., Any],
    *args: Any,
    compiler_options: Mapping[str, Any] | None = None,
) -> TargetProgram:
    """Compiles `fn(*args)` for a GPU, on any machine.

    XLA compiles the whole program in a process of its own; only what needs a GPU is left out: the
    search for the fastest library kernels. Their workspaces are therefore those of XLA's first
    choice.

    Args:
        target: a key of `mlg_jax.memory.targets.TARGETS`.
        fn: a function of pytrees, for one device and without callbacks to the host.
        args: its arguments, or their shapes (`jax.ShapeDtypeStruct`).
        compiler_options: XLA's options, as for `jax.jit`. By default matrix products are left to
            cuBLAS; with `{"xla_gpu_enable_triton_gemm": True}`, XLA generates kernels for some, as
            it does where it can time both.

    Raises:
        TypeError, ValueError: `target` or `fn` is not one of the above.
        ImportError: JAX's CUDA plugin is not installed.
        TargetError: the program cannot be compiled for this target.
    """
    program = make_program(fn, args)
    return compile_leaves(target, program.call, program.leaves, compiler_options or {})


def compile_leaves(
    target: str,
    call: Callable[[Sequence[Any]], Any],
    leaves: Sequence[Any],
    compiler_options: Mapping[str, Any] | None = None,
) -> TargetProgram:
    """`compile_for` of a function of one flat list."""
    found, cuda_version = find_target(target), _cuda_version(target)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in map(_array, leaves)]
    with traced_for("gpu"):
        program = _serialized(call, shapes)
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        (directory / "program").write_bytes(program)
        (directory / "target").write_text(to_text(found, cuda_version))
        (directory / "options.json").write_text(json.dumps(dict(compiler_options or {})))
        _run_worker(directory, target)
        numbers = json.loads((directory / "memory.json").read_text())
        text = (directory / "program.hlo").read_text()
    workspace = read_schedule(text).workspace_bytes
    return TargetProgram(found, CompiledMemory(**numbers, workspace_bytes=workspace), text)


def _array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "shape") else jax.numpy.asarray(leaf)


def _cuda_version(target: str) -> int:
    for version, plugin in _PLUGINS.items():
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(plugin) is not None:
                return version
    raise ImportError(
        f"`target` {target!r} needs JAX's CUDA plugin, which holds XLA's compiler for GPUs (no GPU "
        'and no driver are needed): pip install "mlg-jax[cuda12]".'
    )


def _serialized(call: Callable[[Sequence[Any]], Any], shapes: Sequence[Any]) -> bytes:
    try:
        program = export.export(jax.jit(call), platforms=["cuda"])(list(shapes))
    except (NotImplementedError, ValueError) as error:  # of JAX's lowering of callbacks
        if not any(words in str(error) for words in ("host_callbacks", "specified backend")):
            raise
        raise TargetError(
            "`fn` must not call back to the host to be compiled for a target; policies with "
            "bitmaps do so to warn: set `on_overflow='silent'`."
        ) from error
    return bytes(program.serialize())


def _run_worker(directory: pathlib.Path, target: str) -> None:
    """Runs the worker without a device, and without compiler flags meant for this process."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, _target_worker.__file__, str(directory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        failed = [line for line in lines if "Check failed" in line]  # the compiler aborted
        last = printable((failed or lines)[-1], 500) if lines else f"exit status {done.returncode}"
        raise TargetError(
            f"The program could not be compiled for {target!r} with jax {jax.__version__}: {last} "
            "(Compiling for an absent GPU uses parts of JAX that may change between its versions; "
            "nothing else in mlg_jax does.)"
        )
