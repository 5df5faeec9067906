"""Files that are replaced as a whole or not at all."""

import os
import pathlib
import secrets


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file; the previous content stays at `path` until the new one is safely on disk.

    A symbolic link is followed: its target is replaced, not the link.

    Raises:
        OSError: the file cannot be written; the error names `path`.
    """
    target = pathlib.Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except OSError as error:  # the error of a full disk names no file
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def _sync_directory(directory: pathlib.Path) -> None:
    """Makes a rename durable, where directories can be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
