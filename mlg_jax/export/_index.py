"""The index of a packed file: its arrays as a tree of names, in compact JSON."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax import traverse_util

from mlg_jax.export._json import from_json, to_json
from mlg_jax.export._tensor import PLAIN_BYTES, PackedTensor, num_constants, num_data_bytes
from mlg_jax.quant import QuantSpec

KEYS = {"encodings", "manifest", "tensors"}
ENCODING = re.compile(r"([a-z_]{1,32}):([1-9][0-9]?)")  # scheme and bits
NAME = re.compile(r"[A-Za-z0-9_]{1,255}")
MAX_ENCODINGS = 256
MAX_DEPTH = 32  # names in a path
MAX_RANK = 8
MAX_SIZE = 2**40  # entries of one array; keeps sums of sizes far from integer overflow

Path = tuple[str, ...]
Layout = tuple[Path, tuple[int, ...], str, int | None]  # path, shape, scheme, bits


class PackedFileError(ValueError):
    """A file is not a packed model, is damaged, or has a version this library cannot read."""


def index_of(tensors: Sequence[PackedTensor], manifest: Mapping[str, Any]) -> bytes:
    """The index of tensors, which must be sorted by path."""
    encodings = sorted({_encoding_of(t.scheme, t.bits) for t in tensors})
    leaves = {t.path: [encodings.index(_encoding_of(t.scheme, t.bits)), *t.shape] for t in tensors}
    tree = traverse_util.unflatten_dict(leaves)
    return to_json({"encodings": encodings, "manifest": manifest, "tensors": tree})


def read_index(data: bytes) -> tuple[list[Layout], dict[str, Any]]:
    """The layouts of the arrays, in the order of their data, and the manifest.

    Raises:
        PackedFileError: `data` is not a valid index.
    """
    index = from_json(data, "index", PackedFileError)
    if set(index) != KEYS:
        raise PackedFileError(f"the keys of its index are not {sorted(KEYS)}")
    encodings, manifest, tree = (index[key] for key in sorted(KEYS))
    if not (isinstance(encodings, list) and isinstance(manifest, dict) and isinstance(tree, dict)):
        raise PackedFileError("its index does not hold a list of encodings and two objects")
    if len(encodings) > MAX_ENCODINGS:
        raise PackedFileError(
            f"its index has {len(encodings)} encodings; {MAX_ENCODINGS} are allowed"
        )
    kinds = [_read_encoding(encoding) for encoding in encodings]
    return list(_read_tree((), tree, kinds)), manifest


def layout_bytes(layout: Layout) -> int:
    """Bytes of the constants and the data of an array."""
    _, shape, scheme, bits = layout
    return 4 * num_constants(scheme) + num_data_bytes(math.prod(shape), scheme, bits)


def _encoding_of(scheme: str, bits: int | None) -> str:
    return scheme if bits is None else f"{scheme}:{bits}"


def _read_encoding(text: Any) -> tuple[str, int | None]:
    if isinstance(text, str) and text in PLAIN_BYTES:
        return text, None
    match = ENCODING.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise PackedFileError(f"its index has the invalid encoding {text!r:.60}")
    try:
        return match[1], QuantSpec(int(match[2]), match[1]).bits
    except ValueError:
        raise PackedFileError(f"its index has the unknown encoding {text!r}") from None


def _read_tree(path: Path, node: Any, kinds: Sequence[tuple[str, int | None]]) -> Iterator[Layout]:
    """The arrays below a node, in ascending order of their names."""
    if isinstance(node, list):
        yield (path, *_read_leaf(path, node, kinds))
        return
    if not isinstance(node, dict) or len(path) == MAX_DEPTH:
        raise PackedFileError(f"its index has no arrays at {'/'.join(path)!r:.60}")
    for name in sorted(node):
        if not NAME.fullmatch(name):
            raise PackedFileError(f"its index has the invalid name {name!r:.60}")
        yield from _read_tree((*path, name), node[name], kinds)


def _read_leaf(
    path: Path, leaf: list[Any], kinds: Sequence[tuple[str, int | None]]
) -> tuple[tuple[int, ...], str, int | None]:
    where = f"its index describes {'/'.join(path)!r:.60}"
    if not leaf or len(leaf) > 1 + MAX_RANK or any(type(n) is not int for n in leaf):
        raise PackedFileError(f"{where} by other than 1 to {1 + MAX_RANK} integers")
    kind, *shape = leaf
    if not 0 <= kind < len(kinds):
        raise PackedFileError(f"{where} with encoding {kind} of {len(kinds)}")
    if any(n < 1 for n in shape) or math.prod(shape) > MAX_SIZE:
        raise PackedFileError(f"{where} with shape {shape}"[:200])
    return (tuple(shape), *kinds[kind])
