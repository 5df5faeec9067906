"""Compiles an exported program for a GPU that is not there; runs in a process of its own.

    python _target_worker.py DIRECTORY

The directory holds `program` (a serialised `jax.export.Exported`), `target` (XLA's description of
the GPU) and `options.json` (of the compiler). It gets `program.hlo`, the optimised and scheduled
program, and `memory.json`.

JAX has a public interface for compiling without a device, `jax.experimental.topologies`, but two of
its gaps have to be filled here: the names "gpu" and "cuda" must mean the same although no CUDA
device is registered, and the compiler must be kept from timing candidates on a device.
"""

import json
import pathlib
import sys
from typing import Any

import jax
from jax import export
from jax.experimental import topologies

OPTIONS: dict[str, Any] = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def main(directory: pathlib.Path) -> None:
    """Reads the program, compiles it and writes what the compiler says."""
    exported = export.deserialize(bytearray((directory / "program").read_bytes()))
    sharding = _sharding((directory / "target").read_text())
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in exported.in_avals]
    args, kwargs = jax.tree.unflatten(exported.in_tree, shapes)
    options = OPTIONS | json.loads((directory / "options.json").read_text())
    compiled: Any = jax.jit(exported.call).lower(*args, **kwargs).compile(options)
    (directory / "program.hlo").write_text(compiled.as_text())
    memory = compiled.memory_analysis()
    costs = compiled.cost_analysis() or {}
    found = {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "flops": costs.get("flops"),
    }
    (directory / "memory.json").write_text(json.dumps(found))


def _sharding(target: str) -> jax.sharding.Sharding:
    """One GPU of this kind."""
    _let_gpu_mean_cuda()
    topology = topologies.get_topology_desc(platform="cuda", target_config=target, topology="1x1x1")
    mesh = topologies.make_mesh(topology, (1,), ("device",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _let_gpu_mean_cuda() -> None:
    """See https://github.com/jax-ml/jax/issues/23971."""
    from jax._src import xla_bridge

    canonicalize = xla_bridge.canonicalize_platform

    def canonicalize_without_device(platform: str) -> str:
        return "cuda" if platform in ("gpu", "cuda") else canonicalize(platform)

    bridge: Any = xla_bridge
    bridge.canonicalize_platform = canonicalize_without_device


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
