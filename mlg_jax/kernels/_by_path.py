"""Different kernels in one network, chosen by the paths of its layers."""

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

MAX_PAIRS = 1024  # in a file; more than a network has layers
MAX_PATTERN = 256  # characters
Patterns = tuple[tuple[str, KernelSpec | None], ...]
Kernels = KernelSpec | QuantSpec | Mapping[str, KernelSpec | QuantSpec | None] | Patterns


@dataclasses.dataclass(frozen=True)
class KernelsByPath(KernelSpec, kind="by_path"):
    """The first pattern (`fnmatch`) that matches a layer's path decides.

    Args:
        choices: `(pattern, spec)` pairs; None stands for the default.
        default: of layers that no pattern matches, and of those to which the spec of their pattern
            does not apply.

    Raises:
        TypeError: an argument of another type.
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
        """As that of every spec, with the pairs as a list."""
        pairs = [[pattern, spec and spec.to_json()] for pattern, spec in self.choices]
        return {"kind": self.kind, "choices": pairs, "default": self.default.to_json()}

    @classmethod
    def from_plain(cls, tree: Any, where: str) -> "KernelsByPath":
        """Inverts `to_json` without its kind; patterns are limited in number and length."""
        values = entries(cls, tree, where)
        choices = patterns_from_json(values["choices"], f"{where}.choices")
        default: Any = KernelSpec.from_json(values["default"], f"{where}.default")
        return cls(choices, default)

    def bind(self, layer: LayerGeometry) -> Kernel:
        """As the first matching spec does, otherwise as the default."""
        matches = (spec for pattern, spec in self.choices if matches_path(pattern, layer.name))
        spec = next(matches, None)
        return (spec and spec.bind(layer)) or self.default.bind(layer)


def by_path(kernels: Kernels | None, weight_bits: int | None = None) -> KernelsByPath:
    """One spec for all layers, or specs by pattern, with ordinary kernels elsewhere.

    Args:
        kernels: a spec, or a mapping from patterns or its items as a tuple; None: no pattern.
        weight_bits: width of ordinary kernels; None does not quantise them.

    Raises:
        TypeError: something else.
    """
    ordinary = OrdinarySpec(QuantSpec(weight_bits))
    if kernels is None:
        return KernelsByPath((), ordinary)
    if isinstance(kernels, KernelsByPath):
        return kernels
    check_instance("kernels", kernels, (KernelSpec, QuantSpec, Mapping, tuple))
    if isinstance(kernels, KernelSpec | QuantSpec):
        kernels = {"*": kernels}
    pairs = kernels.items() if isinstance(kernels, Mapping) else kernels
    specs = tuple((p, None if spec is None else as_spec(spec)) for p, spec in pairs)
    return KernelsByPath(specs, ordinary)


def patterns_from_json(tree: Any, where: str) -> Patterns:
    """`(pattern, spec)` pairs from a list of lists of two, as files have them."""
    pairs = pairs_from_json(tree, where)
    return tuple((p, None if s is None else KernelSpec.from_json(s, where)) for p, s in pairs)


def pairs_from_json(tree: Any, where: str) -> tuple[tuple[Any, Any], ...]:
    """A list of lists of two, for layers or patterns of their names, which are tried in turn.

    Raises:
        ValueError: something else, or more than a network has layers.
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
    """What a layer's `kernel` stands for: a `QuantSpec` is an ordinary kernel quantised by it.

    Raises:
        TypeError: something else.
    """
    check_instance("kernel", kernel, (KernelSpec, QuantSpec))
    return OrdinarySpec(kernel) if isinstance(kernel, QuantSpec) else kernel


def bind_or_ordinary(kernel: Any, layer: LayerGeometry) -> Kernel:
    """The kernel of a layer; an ordinary one where its spec does not apply."""
    return as_spec(kernel).bind(layer) or OrdinarySpec().bind(layer)


def is_plain(kernel: KernelSpec | QuantSpec) -> bool:
    """Whether kernels are ordinary and not quantised."""
    spec = as_spec(kernel)
    return isinstance(spec, OrdinarySpec) and spec.quant.is_identity
