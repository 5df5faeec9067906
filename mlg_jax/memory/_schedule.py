"""Reads a scheduled HLO program: its kernels, and the arrays that are alive at its peak."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

_ITEM_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
}
_INSTRUCTION = re.compile(r"\s+(ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
# Instructions that read or write no memory: their results are those of their operands.
_ALIASES = ("bitcast", "tuple", "get-tuple-element", "opt-barrier")
_KERNELS = ("fusion", "custom-call", "copy", "copy-start", "sort", "reduce", "dynamic-update-slice")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of the entry computation."""

    name: str
    shape: str  # in HLO's notation; a tuple in parentheses
    operation: str  # such as `fusion`
    operands: tuple[str, ...]
    made_by: str  # the JAX operation that it stems from
    is_root: bool
    text: str  # the whole line

    @property
    def target(self) -> str:
        """What a custom call calls, such as `__cudnn$convForward`; otherwise empty."""
        found = re.search(r'custom_call_target="([^"]+)"', self.text)
        return found.group(1) if found else ""


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array with the time of its life, counted in instructions."""

    num_bytes: int
    first: int
    last: int
    shape: str
    is_workspace: bool
    instruction: Instruction


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The entry computation of a program, in the order in which it is executed."""

    instructions: tuple[Instruction, ...]

    @property
    def kernels(self) -> tuple[Instruction, ...]:
        """The instructions that a GPU executes by launching something."""
        return tuple(i for i in self.instructions if i.operation in _KERNELS)

    @property
    def workspace_bytes(self) -> int:
        """By how much the workspaces of library calls raise the peak of the live arrays."""
        buffers = self.buffers
        own = [b for b in buffers if not b.is_workspace]
        return _peak(buffers)[0] - _peak(own)[0]

    def alive_at_peak(self) -> tuple[Buffer, ...]:
        """The arrays that exist when most memory is needed, largest first."""
        buffers = self.buffers
        _, time = _peak(buffers)
        alive = [b for b in buffers if b.first <= time <= b.last and b.num_bytes]
        return tuple(sorted(alive, key=lambda b: -b.num_bytes))

    @functools.cached_property
    def buffers(self) -> tuple[Buffer, ...]:
        """Every array that the program itself allocates for a time."""
        values: dict[str, list[int]] = {}  # of each instruction: positions in `found`
        found: list[Buffer] = []
        for time, own in enumerate(self.instructions):
            read = [n for operand in own.operands for n in values.get(operand, [])]
            if own.operation in _ALIASES:
                values[own.name] = _selected(own, read, values)
            else:
                for n in read:
                    found[n] = dataclasses.replace(found[n], last=time)
                start = len(found)
                found += _results(own, time)
                values[own.name] = list(range(start, len(found)))
            if own.is_root:  # outputs are not temporaries
                for n in values[own.name]:
                    found[n] = dataclasses.replace(found[n], num_bytes=0)
        return tuple(found)


def read_schedule(text: str) -> Schedule:
    """Reads the text of an optimised program (`Compiled.as_text()`)."""
    entry = text[text.index("\nENTRY") :].splitlines()[2:]
    return Schedule(tuple(filter(None, map(_instruction, entry))))


def num_bytes(shape: str) -> int:
    """Bytes of all arrays in a shape in HLO's notation."""
    return sum(
        _ITEM_BYTES.get(dtype, 0) * math.prod(int(n) for n in sizes.split(",") if n)
        for dtype, sizes in _ARRAY.findall(shape)
    )


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    root, name, shape, operation, rest = match.groups()
    made_by = re.search(r'op_name="([^"]*)"', line)
    operands = tuple(re.findall(r"%[\w.\-]+", rest[: _end_of_operands(rest)]))
    origin = made_by.group(1) if made_by else ""
    return Instruction(name, shape, operation, operands, origin, bool(root), line)


def _end_of_operands(rest: str) -> int:
    depth = 1
    for position, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return position
    return len(rest)


def _selected(own: Instruction, read: list[int], values: dict[str, list[int]]) -> list[int]:
    """The arrays that an instruction without memory of its own stands for."""
    if own.operation != "get-tuple-element":
        return read
    index = re.search(r"index=(\d+)", own.text)
    source = values.get(own.operands[0], [])
    position = int(index.group(1)) if index else 0
    return source[position : position + 1]


def _results(own: Instruction, time: int) -> Iterator[Buffer]:
    is_allocated = own.operation not in ("parameter", "constant")
    for match in _ARRAY.finditer(own.shape):
        size = num_bytes(match.group()) if is_allocated else 0
        yield Buffer(size, time, time, match.group(), _is_workspace(own, match.group()), own)


def _is_workspace(own: Instruction, shape: str) -> bool:
    """Libraries get their workspace as a further result, a vector of bytes."""
    return own.operation == "custom-call" and re.fullmatch(r"[su]8\[\d+\]", shape) is not None


def _peak(buffers: Sequence[Buffer]) -> tuple[int, int]:
    """The largest number of bytes alive at once, and when."""
    changes: dict[int, int] = {}
    for buffer in buffers:
        changes[buffer.first] = changes.get(buffer.first, 0) + buffer.num_bytes
        changes[buffer.last + 1] = changes.get(buffer.last + 1, 0) - buffer.num_bytes
    best, at, alive = 0, 0, 0
    for time in sorted(changes):
        alive += changes[time]
        if alive > best:
            best, at = alive, time
    return best, at
