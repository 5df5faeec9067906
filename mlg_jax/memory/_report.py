"""The memory report of a gradient: residuals, compiled bytes and the allocator's peak."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mlg_jax._platform import traced_for
from mlg_jax._tables import table
from mlg_jax.memory._bytes import CompiledMemory, memory_of
from mlg_jax.memory._compiled import compile_gradient, memory_of_gradient
from mlg_jax.memory._device import AllocatorPeak, allocator_peak
from mlg_jax.memory._program import Program, make_differentiable
from mlg_jax.memory._residuals import Residual, measured_residuals, residuals_of
from mlg_jax.memory.targets import find_target

KINDS = ("argument", "constant", "activation")
_MIB = 2**20
_UNKNOWN = "not known"


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """Residuals, compiled bytes and the allocator's peak of a function's gradient."""

    residuals: tuple[Residual, ...]
    compiled: CompiledMemory | None  # of value and gradients; None if the backend has no report
    allocator: AllocatorPeak | None  # None if the device does not count (CPU) or nothing was run
    device: str  # kind of device that the program was compiled for
    jax_version: str

    @property
    def total_residual_bytes(self) -> int:
        """Bytes of all residuals."""
        return sum(row.num_bytes for row in self.residuals)

    @property
    def activation_bytes(self) -> int:
        """Bytes of the residuals that are live only because of the backward pass."""
        return self.bytes_by_kind["activation"]

    @property
    def bytes_by_kind(self) -> dict[str, int]:
        """Bytes of the residuals that are arguments, constants and activations."""
        return {
            kind: sum(row.num_bytes for row in self.residuals if row.kind == kind) for kind in KINDS
        }

    @property
    def bytes_by_operation(self) -> dict[str, int]:
        """Bytes of the activations by the operation that made them, largest first."""
        sums: collections.Counter[str] = collections.Counter()
        for row in self.residuals:
            if row.kind == "activation":
                sums[row.operation] += row.num_bytes
        return dict(sums.most_common())

    @property
    def activation_zero_fraction(self) -> float | None:
        """Zero fraction of the activations, weighted by bytes; None if nothing was run."""
        rows = [row for row in self.residuals if row.kind == "activation" and row.num_bytes]
        known = [row for row in rows if row.zero_fraction is not None]
        if not known:
            return None
        weighted = sum((row.zero_fraction or 0.0) * row.num_bytes for row in known)
        return weighted / sum(row.num_bytes for row in known)

    def to_dict(self) -> dict[str, Any]:
        """The report as nested dicts and lists of numbers, strings and None, for JSON."""
        allocator = None
        if self.allocator is not None:
            own = {"call_bytes": self.allocator.call_bytes}
            allocator = dataclasses.asdict(self.allocator) | own
        compiled = None
        if self.compiled is not None:
            compiled = dataclasses.asdict(self.compiled) | {
                "total_bytes": self.compiled.total_bytes
            }
        return {
            "residuals": [
                dataclasses.asdict(row) | {"shape": list(row.shape)} for row in self.residuals
            ],
            "total_residual_bytes": self.total_residual_bytes,
            "activation_bytes": self.activation_bytes,
            "bytes_by_kind": self.bytes_by_kind,
            "bytes_by_operation": self.bytes_by_operation,
            "activation_zero_fraction": self.activation_zero_fraction,
            "compiled": compiled,
            "allocator": allocator,
            "device": self.device,
            "jax_version": self.jax_version,
        }

    def to_markdown(self) -> str:
        """Two tables: totals, and one row a residual."""
        totals = ((name, _bytes(size), _mib(size)) for name, size in self._totals().items())
        names = ("residual", "kind", "shape", "dtype", "bytes", "zeros", "made by")
        parts = (
            table(("", "bytes", "MiB"), totals),
            f"{self.device}, jax {self.jax_version}. {self._flops()}",
            table(names, map(_cells, self.residuals), "llllrrl"),
        )
        return "\n\n".join(parts)

    def _totals(self) -> dict[str, int | None]:
        compiled, allocator = self.compiled, self.allocator
        workspace = {}
        if compiled is not None and compiled.workspace_bytes:
            workspace = {"compiled: workspaces among them": compiled.workspace_bytes}
        kinds = {f"residuals: {kind}s": self.bytes_by_kind[kind] for kind in KINDS}
        return {
            **kinds,
            "residuals: total": self.total_residual_bytes,
            "compiled: arguments": None if compiled is None else compiled.argument_bytes,
            "compiled: outputs": None if compiled is None else compiled.output_bytes,
            "compiled: temporaries": None if compiled is None else compiled.temporary_bytes,
            **workspace,
            "compiled: aliased": None if compiled is None else compiled.alias_bytes,
            "allocator: peak of the process": None if allocator is None else allocator.peak_bytes,
            "allocator: added by the call": None if allocator is None else allocator.call_bytes,
        }

    def _flops(self) -> str:
        flops = None if self.compiled is None else self.compiled.flops
        return f"FLOPs: {_UNKNOWN if flops is None else f'{flops:,.0f}'}."


def memory_report(
    fn: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    target: str | None = None,
) -> MemoryReport:
    """Reports where the memory of `fn`'s gradient goes.

    Residuals are the arrays that `jax.vjp(fn, *args)` saves. Compiled bytes are those of one
    program that returns the value and the gradients: its temporaries contain the residuals, some
    of which XLA may recompute or merge. With arrays as arguments, the forward pass is run, and on
    devices whose allocator counts bytes also the gradient. With shapes, the program is only
    compiled, and zero fractions and the allocator's peak are None. On a mesh, residual bytes are
    totals over all devices, compiled and allocated bytes are per device.

    Args:
        fn: the function to differentiate. It returns a scalar, an array or a pytree of them; the
            gradients are those of the sum of all entries.
        args: its arguments: pytrees of arrays or of `jax.ShapeDtypeStruct`. Strings, bools and
            integers among them are constants of the program.
        argnums: position(s) of the arguments to differentiate with respect to; None for all. For a
            training loss, 0 selects its parameters.
        has_aux: whether `fn` returns `(value, auxiliary output)`.
        target: a GPU to compile for, a key of `mlg_jax.memory.targets.TARGETS` such as `h100`; see
            `compile_for`. No GPU is needed; nothing is run. None: the devices that are here.

    Returns:
        The report, in bytes; see its `to_markdown()` and `to_dict()`.

    Raises:
        TypeError: `fn` is not a function, or `argnums` is not made of integers.
        ValueError: the selected arguments hold no floating-point array, or `target` is unknown.
        ImportError: JAX's CUDA plugin, which compiles for a target, is not installed.
        TargetError: the program cannot be compiled for the target.

    Examples:
        >>> report = memory_report(lambda x: jnp.sum(jnp.sin(x)), jnp.zeros((4, 8)))
        >>> report.activation_bytes, report.residuals[0].zero_fraction  # cos(0) is saved
        (128, 0.0)

    Reference: https://arxiv.org/abs/2110.15362, section 3.
    """
    program = make_differentiable(fn, args, argnums, has_aux)
    if target is not None:
        return _report_for(target, program)
    residuals = residuals_of(program)
    compiled = compile_gradient(program)
    device = _device(program)
    allocator = None
    if not program.is_abstract:
        leaves = list(program.leaves)
        # Read the allocator before counting zeros, which would raise the peak of the process.
        allocator = allocator_peak(lambda: compiled(leaves), device)
        residuals = measured_residuals(program)
    return MemoryReport(
        residuals=residuals,
        compiled=memory_of(compiled),
        allocator=allocator,
        device=device.device_kind,
        jax_version=jax.__version__,
    )


def _report_for(target: str, program: Program) -> MemoryReport:
    """The report of a program that is compiled for a GPU that is not there."""
    found = find_target(target)
    compiled = memory_of_gradient(program, target)
    with traced_for("gpu"):
        residuals = residuals_of(program)
    return MemoryReport(
        residuals=residuals,
        compiled=compiled,
        allocator=None,
        device=f"{found.description}, compiled for",
        jax_version=jax.__version__,
    )


def _device(program: Program) -> Any:
    """The device of the first array among the leaves, or the default device."""
    for leaf in program.leaves:
        if isinstance(leaf, jax.Array):
            return min(leaf.devices(), key=lambda device: device.id)
    return jax.local_devices()[0]


def _bytes(num_bytes: int | None) -> str:
    return _UNKNOWN if num_bytes is None else f"{num_bytes:,}"


def _mib(num_bytes: int | None) -> str:
    return _UNKNOWN if num_bytes is None else f"{num_bytes / _MIB:,.3f}"


def _cells(row: Residual) -> tuple[str, ...]:
    zeros = _UNKNOWN if row.zero_fraction is None else f"{row.zero_fraction:.4f}"
    made_by = " ".join(part for part in (row.operation, row.source) if part)
    return (
        row.name,
        row.kind,
        "×".join(map(str, row.shape)) or "scalar",
        row.dtype,
        _bytes(row.num_bytes),
        zeros,
        made_by,
    )
