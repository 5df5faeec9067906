"""Seals a directory with a file that holds the digests of all its files, written last."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from mlg_jax._atomic import write_atomically

SEAL_FILE = "digests.json"


def seal(directory: Path, names: Iterable[str] | None = None) -> None:
    """Writes the digests of files that must not change afterwards.

    Args:
        directory: the directory of the files and of the seal.
        names: paths of the files relative to `directory`; None seals all files below it.

    Raises:
        OSError: a file cannot be read, or the seal cannot be written.
    """
    if names is None:
        paths = (path for path in directory.rglob("*") if path.is_file())
        names = sorted(path.relative_to(directory).as_posix() for path in paths)
    digests = {name: _digest(directory / name) for name in names if name != SEAL_FILE}
    write_atomically(directory / SEAL_FILE, json.dumps(digests, indent=0).encode())


def damage(directory: Path) -> str | None:
    """Describes the first damaged file of a sealed directory; None if all files are intact.

    Files added after sealing are ignored.
    """
    try:
        digests = dict(json.loads((directory / SEAL_FILE).read_text()))
    except FileNotFoundError:
        return f"{SEAL_FILE} is missing"
    except (OSError, ValueError, TypeError):
        return f"{SEAL_FILE} is not readable"
    for name, expected in digests.items():
        try:
            if _digest(directory / name) != expected:
                return f"{name} was changed"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError):
            return f"{name} is not readable"
    return None if digests else f"{SEAL_FILE} is empty"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
