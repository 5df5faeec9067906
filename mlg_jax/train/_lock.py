"""A lock that keeps a second run out of a work directory."""

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
    """Locks a work directory until the context is left or the process ends, however it ends.

    In a multi-process run only process 0 takes the lock. On a file system without locks a warning
    is logged, and other runs are not kept out.

    Args:
        work_dir: created if it does not exist. The file `lock` stays in it; its presence alone does
            not mean that the directory is locked.

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
        with contextlib.suppress(OSError):  # on a full disk the lock holds, only without a name
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
        _LOGGER.warning(
            "%s cannot be locked (%s): do not start a second run in it.", path.parent, error
        )
