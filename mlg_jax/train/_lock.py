"""One process at a time writes into a work directory."""

import contextlib
import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import jax

from mlg_jax.train._workdir import WorkDirError

LOCK_FILE = "lock"
_LOGGER = logging.getLogger(__name__)


@contextlib.contextmanager
def lock_work_dir(work_dir: str | Path) -> Iterator[None]:
    """Keeps other runs out of a directory. The lock ends with the process, however it ends.

    Of several processes of one run only the first locks. On a file system without locks a warning
    says so, and nothing is kept out.

    Args:
        work_dir: made if it is not there; the file `lock` stays in it and means nothing.

    Raises:
        WorkDirError: another process holds the lock.
        OSError: the directory or the file cannot be written.
    """
    if jax.process_index() > 0:
        yield
        return
    path = Path(work_dir).absolute() / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        _lock(file.fileno(), path)
        with contextlib.suppress(OSError):  # a full disk; the lock holds without its holder's name
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
        yield


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = path.read_text().strip() or "another process"
        raise WorkDirError(
            f"{path.parent} is in use by {holder}. Wait until it ends, or choose another `workdir`."
        ) from None
    except OSError as error:
        _LOGGER.warning("%s cannot be locked (%s): start no second run in it.", path.parent, error)
