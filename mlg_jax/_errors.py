"""Errors that are the user's, as one line; and text from files, made safe to print.

An error is the user's if it says that something given cannot be used:

- its class is one of this package's own (`PackedFileError`, `ConfigError`, ...);
- it is an OSError: a path, a permission, a full disk;
- it is a ValueError, TypeError or ImportError that a `raise` statement of this package raised: a
  check refused something. The same classes from anywhere deeper (JAX, NumPy), or from an operation
  that failed without a `raise` (`None + 1`), are faults of this package and keep their traceback.
"""

import dis
import types

PACKAGE = "mlg_jax"
MAX_LINE = 2000  # characters of a message
MAX_TEXT = 200  # characters of one name
_CHECKS = (ImportError, TypeError, ValueError)
_RAISE = dis.opmap["RAISE_VARARGS"]


def user_message(error: Exception) -> str | None:
    """What a caught error tells its user, in one line without control characters.

    Args:
        error: as an `except` clause caught it, with its traceback.

    Returns:
        The line; None for a fault of this package, which should be raised again.
    """
    if not (_is_ours(type(error).__module__) or isinstance(error, OSError) or _is_check(error)):
        return None
    return printable(" ".join(str(error).split()), MAX_LINE)


def printable(text: object, limit: int = MAX_TEXT) -> str:
    r"""Text from a file as it may be printed: on one line, clipped, no control characters.

    Args:
        text: converted by `str`.
        limit: characters that are kept.

    Returns:
        What cannot be printed (line breaks, terminal escapes, lone surrogates, marks that change
        the direction of writing) as `\n`, `\x1b`, `\ud800`, `\u202e`.
    """
    whole = str(text)
    kept = whole if len(whole) <= limit else f"{whole[:limit]}... ({len(whole):,} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in kept)


def _is_check(error: Exception) -> bool:
    """Whether a `raise` statement of this package raised it."""
    if not isinstance(error, _CHECKS) or error.__traceback__ is None:
        return False
    last = _innermost(error.__traceback__)
    code = last.tb_frame.f_code.co_code
    is_ours = _is_ours(last.tb_frame.f_globals.get("__name__", ""))
    return is_ours and code[last.tb_lasti] == _RAISE


def _innermost(traceback: types.TracebackType) -> types.TracebackType:
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE
