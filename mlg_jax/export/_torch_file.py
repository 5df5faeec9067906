"""Files with PyTorch state dicts: safetensors, and `.pth`, which is looked at before it is read."""

import mmap
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mlg_jax._atomic import write_atomically
from mlg_jax._checks import check_choice
from mlg_jax._errors import printable
from mlg_jax.export._json import from_json

MAX_HEADER_BYTES = 2**24  # of safetensors; ResNet-152's is 2**17
SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pth.tar", ".safetensors")
MIN_TORCH = (2, 10)  # earlier ones believe a storage's stated size, and read past its end
_ENCRYPTED = 1  # a flag of an entry
# Where checkpoints keep a state dict. The first that is there counts: trained before averaged.
_STATE_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema"),
)
_MAX_NESTING = 8
_MAX_NAMED = 5  # keys or classes in an error message
_UNBOUNDED = b"bytearray"  # the one allowed class that takes as many bytes as a number says


_DTYPES = {  # by the names of safetensors
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class TorchFileError(ValueError):
    """A file holds no PyTorch state dict, is damaged, or would take more memory than its bytes."""


def read_torch(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a state dict; nothing in the file is executed.

    Args:
        path: `.safetensors`, or `.pth`, `.pth.tar`, `.pt`, `.ckpt`, `.bin` as `torch.save` of
            PyTorch 1.6 and later writes them, of a state dict or of a mapping that has one under
            `state_dict`, `model`, `ema` or another usual name, which may be nested. These are read
            by `torch.load` with `weights_only=True`, after the file's directory has been checked.

    Returns:
        Arrays by name, bfloat16 as float32.

    Raises:
        OSError: the file cannot be opened.
        ImportError: the file is not safetensors, and PyTorch 2.10 or later is not installed.
        ValueError: another suffix.
        TorchFileError: a damaged file, one that holds anything else, or one that would take more
            memory than it has bytes.
    """
    path = pathlib.Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"`path` must end in one of {list(SUFFIXES)}; got {path}.")
    try:
        if path.suffix == ".safetensors":
            return _from_safetensors(path.read_bytes())
        num_bytes = _check_archive(path)
        return _arrays(_state_of(_load(path)), num_bytes)
    except TorchFileError as error:
        raise TorchFileError(f"`path` must hold a state dict; got {path}: {error}.") from error


def write_torch(path: str | os.PathLike[str], state: Mapping[str, np.ndarray]) -> int:
    """Writes a state dict, as from `to_torch`, to a safetensors file.

    The file appears whole or not at all; equal arrays give equal bytes.

    Returns:
        The file's size in bytes.

    Raises:
        OSError: the file cannot be written.
        ValueError: another suffix than `.safetensors`.
    """
    import safetensors.numpy

    check_choice("path suffix", pathlib.Path(path).suffix, (".safetensors",))
    # The library writes an array's memory as if it were in C order, whatever its strides.
    arrays = {name: np.asarray(value, np.float32, order="C") for name, value in state.items()}
    data = safetensors.numpy.save(arrays, {"format": "pt"})
    write_atomically(path, data)
    return len(data)


def _from_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name.

    The header is checked first: the library accepts one of 100 MB, and repeated names.
    """
    import safetensors

    header_bytes = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header_bytes > min(len(data) - 8, MAX_HEADER_BYTES):
        raise TorchFileError(f"a header of {header_bytes} bytes in a file of {len(data)}")
    from_json(data[8 : 8 + header_bytes], "header", TorchFileError)
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise TorchFileError(f"safetensors refuses it ({printable(error)})") from None
    return {name: _array(name, entry) for name, entry in entries}


def _array(name: str, entry: Mapping[str, Any]) -> np.ndarray:
    """One array of a safetensors file; bfloat16, which NumPy does not know, as float32."""
    kind, shape = entry["dtype"], entry["shape"]
    if kind not in _DTYPES:
        raise TorchFileError(f"{printable(name, 80)!r} is of dtype {kind}")
    try:
        array = np.frombuffer(entry["data"], _DTYPES[kind]).reshape(shape)
    except ValueError:  # too many axes, or a shape like (0, 2**40, 2**40)
        raise TorchFileError(f"{printable(name, 80)!r} is of shape {shape!r:.200}") from None
    return array.astype(np.float32) if kind == "BF16" else array


def _check_archive(path: pathlib.Path) -> int:
    """The file's length, if it is an archive that unpacks to no more than that."""
    with open(path, "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except Exception as error:  # a damaged directory leads to many kinds
            raise TorchFileError(
                f"no zip archive, as PyTorch 1.6 and later write ({printable(error)})"
            ) from None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(_UNBOUNDED) >= 0:
                raise TorchFileError(f"it makes a {_UNBOUNDED.decode()}, which may be of any size")
    for entry in entries:
        is_stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & _ENCRYPTED
        if not is_stored or entry.file_size != entry.compress_size:
            raise TorchFileError(f"its entry {entry.filename!r:.80} is compressed or encrypted")
    if len({entry.filename for entry in entries}) != len(entries):
        raise TorchFileError("two of its entries have one name")
    total = sum(entry.file_size for entry in entries)
    if total > num_bytes:
        raise TorchFileError(f"entries of {total} bytes in a file of {num_bytes}")
    return num_bytes


def _load(path: pathlib.Path) -> Any:
    """What `torch.save` was given."""
    torch = _import_torch()
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle leads to any of them
        raise TorchFileError(_refusal(torch, path, error)) from None


def _refusal(torch: Any, path: pathlib.Path, error: Exception) -> str:
    """What PyTorch does not load, and what the file's owner can do about it."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a damaged pickle, again
        names = []
    if names:
        return (
            f"it holds objects of {_listed(sorted(names))}, which are not loaded because they can "
            "run code; save the state dict alone: torch.save(model.state_dict(), path)"
        )
    # Behind several lines of advice to others, with escape codes for bold type.
    reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0]
    return f"PyTorch refuses it ({printable(reason)})"


def _listed(names: Sequence[Any]) -> str:
    more = [f"{len(names) - _MAX_NAMED} more"] if len(names) > _MAX_NAMED else []
    return ", ".join([*(printable(name, 80) for name in names[:_MAX_NAMED]), *more])


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"A .pth file needs PyTorch, `pip install mlg-jax[torch]`. {error}"
        ) from None
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if version < MIN_TORCH:
        raise ImportError(f"PyTorch must be 2.10 or later to read files; got {torch.__version__}.")
    return torch


def _state_of(loaded: Any) -> Mapping[str, Any]:
    """The state dict of a checkpoint, or what is one already."""
    for _ in range(_MAX_NESTING):  # a mapping may hold itself
        if not isinstance(loaded, Mapping):
            raise TorchFileError(f"a {type(loaded).__name__}")
        inner = [loaded[key] for key in _STATE_KEYS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    return loaded


def _arrays(state: Mapping[str, Any], num_bytes: int) -> dict[str, np.ndarray]:
    """The tensors as arrays, if they are ordinary ones that take no more than the file has."""
    torch = _import_torch()
    for name, tensor in state.items():
        is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.is_cpu
        if not isinstance(name, str) or not is_plain or tensor.layout is not torch.strided:
            raise TorchFileError(
                f"{_named(name)} must be a dense tensor on the CPU; got {type(tensor).__name__}; "
                f"state dicts are looked for under {', '.join(_STATE_KEYS)}"
            )
    # One number may stand for any number of entries: a stride can be zero.
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if total > num_bytes:
        raise TorchFileError(f"tensors of {total} bytes in a file of {num_bytes}")
    return {name: _to_numpy(torch, tensor.detach()) for name, tensor in state.items()}


def _named(key: Any) -> str:
    """A key as it may be printed; other objects than strings may be endless when printed."""
    return repr(printable(key, 80)) if isinstance(key, str) else f"the {type(key).__name__} key"


def _to_numpy(torch: Any, tensor: Any) -> np.ndarray:
    try:
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    except (RuntimeError, TypeError) as error:  # quantised tensors, views that are not resolved
        raise TorchFileError(f"a tensor NumPy cannot hold ({printable(error)})") from None
    if array.dtype.kind not in "biuf":
        raise TorchFileError(f"a tensor of {array.dtype}")
    return array
