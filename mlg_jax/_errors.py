"""Tells user errors from bugs, formats them as one line, and makes foreign text safe to print.

A user error means that an input cannot be used. It is one of

- an exception class of this package (`PackedFileError`, `ConfigError`, ...);
- an OSError: a wrong path, missing permissions, a full disk;
- a ValueError, TypeError or ImportError from a `raise` statement in this package, that is, from one
  of its checks. The same classes raised inside JAX or NumPy, or by an operation without a `raise`
  statement (`None + 1`), are bugs of this package and keep their traceback.
"""

import dis
import types

PACKAGE = "mlg_jax"
MAX_LINE = 2000  # largest number of characters of a message
MAX_TEXT = 200  # largest number of characters of a name
_CHECKS = (ImportError, TypeError, ValueError)
_RAISE = dis.opmap["RAISE_VARARGS"]


def user_message(error: Exception) -> str | None:
    """Formats a user error as one line without control characters.

    Args:
        error: an exception caught by an `except` clause, with its traceback.

    Returns:
        The line, or None if the error is a bug of this package and should be raised again.
    """
    if not (_is_ours(type(error).__module__) or isinstance(error, OSError) or _is_check(error)):
        return None
    return printable(" ".join(str(error).split()), MAX_LINE)


def printable(text: object, limit: int = MAX_TEXT) -> str:
    r"""Makes text from a file safe to print: one line, clipped, without control characters.

    Args:
        text: any object; it is converted by `str`.
        limit: largest number of characters that are kept.

    Returns:
        The text with unprintable characters (line breaks, terminal escapes, lone surrogates,
        bidirectional marks) escaped as `\n`, `\x1b`, `\ud800`, `\u202e`.
    """
    whole = str(text)
    kept = whole if len(whole) <= limit else f"{whole[:limit]}... ({len(whole):,} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in kept)


def _is_check(error: Exception) -> bool:
    """Whether the error comes from a `raise` statement in this package."""
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
