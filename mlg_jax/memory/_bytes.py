"""The bytes of a compiled program."""

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class CompiledMemory:
    """Memory of a program on one device in bytes, as planned by the compiler.

    XLA's own `peak_memory_in_bytes` is left out because it is wrong on CPU.
    """

    argument_bytes: int
    output_bytes: int
    temporary_bytes: int  # live only inside the program, e.g. residuals
    alias_bytes: int  # outputs that reuse the memory of donated arguments
    flops: float | None = None  # XLA's estimate, loop bodies counted once; None if unknown
    workspace_bytes: int = 0  # of the temporaries: scratch of library calls at the peak; targets

    @property
    def total_bytes(self) -> int:
        """Arguments, outputs and temporaries; aliased memory is counted once."""
        return self.argument_bytes + self.output_bytes + self.temporary_bytes - self.alias_bytes


def memory_of(compiled: jax.stages.Compiled) -> CompiledMemory | None:
    """Reads the memory of a compiled program."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return CompiledMemory(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        flops=_flops(compiled),
    )


def _flops(compiled: jax.stages.Compiled) -> float | None:
    """XLA's estimate; it is -1 where XLA does not know."""
    costs: Any = compiled.cost_analysis() or {}
    flops = costs.get("flops")
    return None if flops is None or flops < 0 else float(flops)
