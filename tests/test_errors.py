"""User errors are told from bugs, and foreign text cannot break out of a line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax._checks import check_choice, check_integer
from mlg_jax._errors import MAX_LINE, printable, user_message
from mlg_jax.config import ConfigError
from mlg_jax.export import PackedFileError
from mlg_jax.train import CheckpointError, NonFiniteError


def caught(function):
    with pytest.raises(Exception) as info:
        function()
    return info.value


def raised(error):
    def function():
        raise error

    return caught(function)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "function, message",
    [
        (lambda: check_integer("runs", 0, 1), "`runs` must be an integer >= 1; got 0."),
        (lambda: check_integer("runs", "a", 1), "`runs` must be an integer >= 1; got 'a'."),
        (lambda: jax.jit(lambda x: check_choice("x", "b", "a"))(0), "`x` must be one of ['a']"),
        (lambda: open("/nowhere/at all"), "No such file or directory: '/nowhere/at all'"),
        (lambda: open("/"), "Is a directory: '/'"),
    ],
)
def test_failed_checks_and_os_errors_are_user_errors(function, message):
    assert message in user_message(caught(function))


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("a"),
        PackedFileError("a"),
        CheckpointError("a"),
        NonFiniteError("a", step=1),
        OSError(28, "No space left on device"),
    ],
)
def test_our_exception_classes_are_always_user_errors(error):
    """Even if they are raised outside the package, as in this test."""
    assert user_message(raised(error)) == str(error)


@pytest.mark.parametrize(
    "function",
    [
        lambda: jnp.reshape(jnp.zeros(3), (2,)),  # raised by JAX
        lambda: np.zeros(3).reshape(2),  # raised by NumPy
        lambda: check_integer("runs", 1, "a"),  # a comparison in our code fails, not a check
        lambda: check_choice("name", "a", None),
        lambda: int("a"),
        lambda: {}["a"],
        lambda: (_ for _ in ()).throw(AssertionError("a")),
    ],
)
def test_bugs_are_not_user_errors(function):
    assert user_message(caught(function)) is None


def test_a_message_is_one_clipped_line():
    assert user_message(raised(PackedFileError("a\n  b\x1b[1mc\rd\ud800"))) == (
        "a b\\x1b[1mc d\\ud800"
    )
    line = user_message(raised(PackedFileError("\u202e" * 10**6)))
    assert line.isprintable() and line.endswith("... (1,000,000 characters)")
    assert len(line) < 6 * MAX_LINE + 100


@pytest.mark.parametrize("text", ["", "a b", "ä 猫 🐈", 'C:\\"x"'])
def test_printable_text_is_unchanged(text):
    assert printable(text) == text


def test_text_is_clipped_and_escaped():
    assert printable("cat\n  99.00%  dog") == "cat\\n  99.00%  dog"
    assert printable("abcdef", 3) == "abc... (6 characters)"
    assert printable(None) == "None"
