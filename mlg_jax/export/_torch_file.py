"""Files with PyTorch state dicts: safetensors, and `.pth`, which is checked before it is read."""

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

MAX_HEADER_BYTES = 2**24  # of a safetensors file; ResNet-152 has 2**17
SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pth.tar", ".safetensors")
MIN_TORCH = (2, 10)  # earlier versions trust the stated size of a storage and read past its end
_ENCRYPTED = 1  # flag of a zip entry
# Keys under which checkpoints store a state dict. The first one present is used: trained weights
# are preferred to averaged ones.
_STATE_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema"),
)
_MAX_NESTING = 8
_MAX_NAMED = 5  # keys or classes in an error message
_UNBOUNDED = b"bytearray"  # the only class PyTorch allows whose size is a number in the file
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
    """A file is not a PyTorch state dict, is damaged, or would need more memory than its size."""


def read_torch(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a state dict from an untrusted file; nothing in it is executed.

    Args:
        path: a `.safetensors` file, or a `.pth`, `.pth.tar`, `.pt`, `.ckpt` or `.bin` file written
            by `torch.save` of PyTorch 1.6 or later. The latter may hold a state dict, or a possibly
            nested mapping with one under `state_dict`, `model`, `ema` or another usual key. They
            are read by `torch.load` with `weights_only=True`, after their zip directory has been
            checked.

    Returns:
        Arrays by name; bfloat16 becomes float32.

    Raises:
        OSError: the file cannot be opened.
        ImportError: the file is not safetensors, and PyTorch 2.10 or later is not installed.
        ValueError: the suffix is unknown.
        TorchFileError: the file is damaged, holds anything else, or would need more memory than its
            size.
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
    """Writes a state dict to a safetensors file, atomically; equal arrays give identical files.

    Args:
        path: the file, with the suffix `.safetensors`; its directory must exist.
        state: arrays by name, as returned by `to_torch`; stored as float32.

    Returns:
        The size of the file in bytes.

    Raises:
        OSError: the file cannot be written.
        ValueError: the suffix is not `.safetensors`.
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

    The header is checked first, because the library accepts headers of 100 MB and repeated names.
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
    """Checks that a file is a zip archive that unpacks to at most its own size; returns that."""
    with open(path, "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except Exception as error:  # a damaged directory raises many types
            raise TorchFileError(
                f"not a zip archive, as written by PyTorch 1.6 and later ({printable(error)})"
            ) from None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(_UNBOUNDED) >= 0:
                raise TorchFileError(f"it creates a {_UNBOUNDED.decode()}, which can have any size")
    for entry in entries:
        is_stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & _ENCRYPTED
        if not is_stored or entry.file_size != entry.compress_size:
            raise TorchFileError(f"its entry {entry.filename!r:.80} is compressed or encrypted")
    if len({entry.filename for entry in entries}) != len(entries):
        raise TorchFileError("two of its entries have the same name")
    total = sum(entry.file_size for entry in entries)
    if total > num_bytes:
        raise TorchFileError(f"entries of {total} bytes in a file of {num_bytes}")
    return num_bytes


def _load(path: pathlib.Path) -> Any:
    """The object that was passed to `torch.save`."""
    torch = _import_torch()
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises many types
        raise TorchFileError(_refusal(torch, path, error)) from None


def _refusal(torch: Any, path: pathlib.Path, error: Exception) -> str:
    """Explains why PyTorch does not load a file, and what its owner can do about it."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the pickle is damaged
        names = []
    if names:
        return (
            f"it holds objects of {_listed(sorted(names))}, which are not loaded because they can "
            "run code; save the state dict alone: torch.save(model.state_dict(), path)"
        )
    # The reason follows several lines of general advice with terminal escape codes.
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
    """The state dict of a checkpoint, which may be the loaded object itself."""
    for _ in range(_MAX_NESTING):  # bounded, because a mapping may contain itself
        if not isinstance(loaded, Mapping):
            raise TorchFileError(f"a {type(loaded).__name__}")
        inner = [loaded[key] for key in _STATE_KEYS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    return loaded


def _arrays(state: Mapping[str, Any], num_bytes: int) -> dict[str, np.ndarray]:
    """Converts tensors to arrays; they must be dense and need no more memory than the file."""
    torch = _import_torch()
    for name, tensor in state.items():
        is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.is_cpu
        if not isinstance(name, str) or not is_plain or tensor.layout is not torch.strided:
            raise TorchFileError(
                f"{_named(name)} must be a dense tensor on the CPU; got {type(tensor).__name__} "
                f"(state dicts are searched for under {', '.join(_STATE_KEYS)})"
            )
    # A tensor with a stride of zero can have any number of entries.
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if total > num_bytes:
        raise TorchFileError(f"tensors of {total} bytes in a file of {num_bytes}")
    return {name: _to_numpy(torch, tensor.detach()) for name, tensor in state.items()}


def _named(key: Any) -> str:
    """A printable key; for objects other than strings only the type, since they may be huge."""
    return repr(printable(key, 80)) if isinstance(key, str) else f"the {type(key).__name__} key"


def _to_numpy(torch: Any, tensor: Any) -> np.ndarray:
    try:
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    except (RuntimeError, TypeError) as error:  # quantised tensors, lazy views
        raise TorchFileError(f"a tensor that NumPy cannot hold ({printable(error)})") from None
    if array.dtype.kind not in "biuf":
        raise TorchFileError(f"a tensor of {array.dtype}")
    return array
