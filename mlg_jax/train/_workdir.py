"""The work directory of an experiment: bound to its configuration; holds compiled programs."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from mlg_jax._atomic import write_atomically
from mlg_jax._checks import check_real

FINGERPRINT_FILE = "fingerprint.json"


class WorkDirError(RuntimeError):
    """A work directory belongs to another experiment, or to a run in progress."""


def fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration in canonical JSON, as 64 hexadecimal digits.

    Raises:
        TypeError: a value is not JSON-serialisable.
    """
    return hashlib.sha256(_canonical(config).encode()).hexdigest()


def bind_work_dir(work_dir: str | Path, config: Mapping[str, Any]) -> None:
    """Binds a new work directory to a configuration, or checks that it is bound to this one.

    In a multi-process run only process 0 writes; the others only check.

    Args:
        work_dir: created if it does not exist.
        config: JSON-serialisable; everything that determines the results of the run.

    Raises:
        WorkDirError: the directory is bound to another configuration; the message names the
            differences.
        TypeError: a value is not JSON-serialisable.
        OSError: the directory cannot be written.
    """
    path = Path(work_dir).absolute() / FINGERPRINT_FILE
    text = _canonical(config)
    check_work_dir(work_dir, config)
    if jax.process_index() == 0 and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, f"{text}\n".encode())


def check_work_dir(work_dir: str | Path, config: Mapping[str, Any]) -> None:
    """Checks that a directory is unbound or bound to this configuration; writes nothing.

    Raises:
        WorkDirError: the directory is bound to another configuration; the message names the
            differences.
    """
    path = Path(work_dir).absolute() / FINGERPRINT_FILE
    if not path.exists():
        return
    try:
        stored = json.loads(path.read_text())
    except ValueError as error:
        raise WorkDirError(f"{path} is not readable: {error}.") from error
    if stored == (mine := json.loads(_canonical(config))):
        return
    differences = "; ".join(_differences(stored, mine))
    raise WorkDirError(
        f"{path.parent} is the work directory of another experiment: {differences}. "
        "Choose another `workdir`, or remove this one."
    )


def enable_compilation_cache(directory: str | Path, *, min_compile_seconds: float = 1.0) -> None:
    """Turns on XLA's persistent compilation cache, so that later processes need not recompile.

    The cache holds native code, which JAX runs without checking it: whoever can write to the
    directory can run any code. It is therefore created for its owner only (mode 700). It may be
    moved: programs are looked up by their content, not by the path.

    Args:
        directory: created if it does not exist; may be shared between experiments.
        min_compile_seconds: programs that compile faster are not cached, >= 0.

    Raises:
        TypeError, ValueError: `min_compile_seconds` is not a number or is negative.
        OSError: the directory cannot be created.
    """
    check_real("min_compile_seconds", min_compile_seconds, 0.0)
    path = Path(directory).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    compilation_cache.reset_cache()  # otherwise an earlier compilation leaves the cache off
    # XLA's own GPU caches would make the path of the directory part of the key of every program.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float(min_compile_seconds))


def _canonical(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


def _differences(stored: Any, mine: Any, name: str = "") -> list[str]:
    """The first three keys that differ, with both values."""
    if isinstance(stored, dict) and isinstance(mine, dict):
        found: list[str] = []
        for key in sorted({*stored, *mine}):
            left, right = stored.get(key, "absent"), mine.get(key, "absent")
            if left != right:
                found += _differences(left, right, f"{name}.{key}" if name else key)
        return found[:3]
    return [f"`{name}` was {stored!r}, now {mine!r}"]
