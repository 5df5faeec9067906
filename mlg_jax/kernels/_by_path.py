"""Different kernel parametrisations in one network, chosen by layer path."""

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any

from mlg_jax._checks import check_instance
from mlg_jax._dataclass_json import entries
from mlg_jax._types import LayerGeometry
from mlg_jax.kernels._kernel import Kernel, KernelSpec
from mlg_jax.kernels._ordinary import OrdinarySpec
from mlg_jax.quant import QuantSpec

MAX_PAIRS = 1024  # per file; no network has as many layers
MAX_PATTERN = 256  # characters
Patterns = tuple[tuple[str, KernelSpec | None], ...]
Kernels = KernelSpec | QuantSpec | Mapping[str, KernelSpec | QuantSpec | None] | Patterns


@dataclasses.dataclass(frozen=True)
class KernelsByPath(KernelSpec, kind="by_path"):
    """Chooses a layer's spec by the first pattern (`fnmatch`) that matches its path.

    Args:
        choices: `(pattern, spec)` pairs, tried in order; a spec of None stands for `default`.
        default: spec of layers that no pattern matches, and of those to which the spec of their
            pattern does not apply.

    Raises:
        TypeError: an argument has the wrong type.
    """

    choices: Patterns
    default: OrdinarySpec = OrdinarySpec()

    def __post_init__(self) -> None:
        check_instance("choices", self.choices, tuple)
        check_instance("default", self.default, OrdinarySpec)
        for pattern, spec in self.choices:
            check_instance("pattern", pattern, str)
            check_instance(f"choices[{pattern!r}]", spec, (KernelSpec, type(None)))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as for every spec, with the pairs as a list."""
        pairs = [[pattern, spec and spec.to_json()] for pattern, spec in self.choices]
        return {"kind": self.kind, "choices": pairs, "default": self.default.to_json()}

    @classmethod
    def from_plain(cls, tree: Any, where: str) -> "KernelsByPath":
        """Inverts `to_json` (without its kind); number and length of patterns are limited."""
        values = entries(cls, tree, where)
        choices = patterns_from_json(values["choices"], f"{where}.choices")
        default: Any = KernelSpec.from_json(values["default"], f"{where}.default")
        return cls(choices, default)

    def bind(self, layer: LayerGeometry) -> Kernel:
        """Binds the first matching spec, or the default if none matches or it does not apply."""
        matches = (spec for pattern, spec in self.choices if matches_path(pattern, layer.name))
        spec = next(matches, None)
        return (spec and spec.bind(layer)) or self.default.bind(layer)


def by_path(kernels: Kernels | None, weight_bits: int | None = None) -> KernelsByPath:
    """Converts `kernels` to a spec that chooses by path, with ordinary kernels as the default.

    Args:
        kernels: one spec for all layers, a mapping from patterns to specs or its items as a tuple,
            or None (no patterns). A `KernelsByPath` is returned unchanged.
        weight_bits: bit width of ordinary kernels; None does not quantise them.

    Raises:
        TypeError: `kernels` has another type.
        ValueError: `weight_bits` is given beside a `KernelsByPath`, which has its own default.
    """
    ordinary = OrdinarySpec(QuantSpec(weight_bits))
    if kernels is None:
        return KernelsByPath((), ordinary)
    if isinstance(kernels, KernelsByPath):
        if weight_bits is not None:
            raise ValueError(
                "`weight_bits` must be None beside a `KernelsByPath`, whose `default` says how "
                f"ordinary kernels are quantised; got {weight_bits!r}."
            )
        return kernels
    check_instance("kernels", kernels, (KernelSpec, QuantSpec, Mapping, tuple))
    if isinstance(kernels, KernelSpec | QuantSpec):
        kernels = {"*": kernels}
    pairs = kernels.items() if isinstance(kernels, Mapping) else kernels
    specs = tuple((p, None if spec is None else as_spec(spec)) for p, spec in pairs)
    return KernelsByPath(specs, ordinary)


def patterns_from_json(tree: Any, where: str) -> Patterns:
    """Reads `(pattern, spec)` pairs from a JSON list of two-element lists."""
    pairs = pairs_from_json(tree, where)
    return tuple((p, None if s is None else KernelSpec.from_json(s, where)) for p, s in pairs)


def pairs_from_json(tree: Any, where: str) -> tuple[tuple[Any, Any], ...]:
    """Reads a JSON list of two-element lists, whose first elements are layer names or patterns.

    Raises:
        ValueError: `tree` is not such a list, or has too many or too long patterns.
    """
    is_list = isinstance(tree, list)
    if not is_list or not all(isinstance(pair, list) and len(pair) == 2 for pair in tree):
        raise ValueError(f"`{where}` must be a list of pairs; got {tree!r}.")
    longest = max((len(str(first)) for first, _ in tree), default=0)
    if len(tree) > MAX_PAIRS or longest > MAX_PATTERN:
        raise ValueError(
            f"`{where}` must have at most {MAX_PAIRS} patterns of {MAX_PATTERN} characters; got "
            f"{len(tree)}, the longest of {longest}."
        )
    return tuple((first, second) for first, second in tree)


def matches_path(pattern: str, path: str) -> bool:
    """Whether the pattern (`fnmatch`, case-sensitive) matches the path of a layer."""
    return fnmatch.fnmatchcase(path, pattern)


def as_spec(kernel: Any) -> KernelSpec:
    """The spec of a layer's `kernel`; a `QuantSpec` means an ordinary kernel quantised by it.

    Raises:
        TypeError: `kernel` is neither a `KernelSpec` nor a `QuantSpec`.
    """
    check_instance("kernel", kernel, (KernelSpec, QuantSpec))
    return OrdinarySpec(kernel) if isinstance(kernel, QuantSpec) else kernel


def bind_or_ordinary(kernel: Any, layer: LayerGeometry) -> Kernel:
    """Binds the spec `kernel` to a layer; the kernel is ordinary if the spec does not apply."""
    return as_spec(kernel).bind(layer) or OrdinarySpec().bind(layer)


def is_plain(kernel: KernelSpec | QuantSpec) -> bool:
    """Whether the spec stands for ordinary kernels without quantisation."""
    spec = as_spec(kernel)
    return isinstance(spec, OrdinarySpec) and spec.quant.is_identity
