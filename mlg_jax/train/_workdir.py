"""The work directory of one experiment: claimed by the configuration that made it."""

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
    """A work directory that belongs to another experiment, or to a run that still lives."""


def fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration in canonical JSON, as 64 hexadecimal digits.

    Raises:
        TypeError: a value that JSON cannot hold.
    """
    return hashlib.sha256(_canonical(config).encode()).hexdigest()


def bind_work_dir(work_dir: str | Path, config: Mapping[str, Any]) -> None:
    """Makes the directory this experiment's, or checks that it is.

    Of several processes only the first writes; the others check what is there.

    Args:
        work_dir: made if it is not there.
        config: all that decides the run's numbers; nested mappings of what JSON can hold.

    Raises:
        WorkDirError: it was made by another configuration; the message names what differs.
        TypeError: a value that JSON cannot hold.
        OSError: it cannot be written.
    """
    path = Path(work_dir).absolute() / FINGERPRINT_FILE
    text = _canonical(config)
    check_work_dir(work_dir, config)
    if jax.process_index() == 0 and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, f"{text}\n".encode())


def check_work_dir(work_dir: str | Path, config: Mapping[str, Any]) -> None:
    """Checks that the directory is this experiment's or nobody's, and claims nothing.

    Raises:
        WorkDirError: it was made by another configuration; the message names what differs.
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
    """Keeps compiled programs on disk, so that the next process need not compile them again.

    They are native code, which JAX runs as it finds it: whoever can write into the directory
    decides what runs. A new one is therefore made for its owner alone (mode 700). The directory
    may be moved: a program is found by its content, not by the path.

    Args:
        directory: made if it is not there; may be shared between experiments.
        min_compile_seconds: programs that compile faster are not kept, >= 0.

    Raises:
        TypeError, ValueError: seconds that are negative.
        OSError: the directory cannot be made.
    """
    check_real("min_compile_seconds", min_compile_seconds, 0.0)
    path = Path(directory).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    compilation_cache.reset_cache()  # otherwise a program compiled before this call keeps it off
    # XLA's own GPU caches would put the directory's path into every program's key.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float(min_compile_seconds))


def _canonical(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


def _differences(stored: Any, mine: Any, name: str = "") -> list[str]:
    """At most three keys that differ, with both values."""
    if isinstance(stored, dict) and isinstance(mine, dict):
        found: list[str] = []
        for key in sorted({*stored, *mine}):
            left, right = stored.get(key, "absent"), mine.get(key, "absent")
            if left != right:
                found += _differences(left, right, f"{name}.{key}" if name else key)
        return found[:3]
    return [f"`{name}` was {stored!r}, now {mine!r}"]
