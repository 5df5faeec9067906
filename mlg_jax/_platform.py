"""The platform for which functions are traced: the default backend, or that of a target."""

import contextlib
from collections.abc import Iterator

import jax

PORTABLE = "portable"  # another runtime, for which convolutions stay convolutions

_PLATFORM = jax.make_user_context(None)  # part of the keys of JAX's caches of traced functions


def traced_platform() -> str:
    """`cpu`, `gpu`, `tpu` or `PORTABLE`: where the function that is being traced will run."""
    return _PLATFORM.value or jax.default_backend()


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Within this context, `traced_platform` is `platform`."""
    with _PLATFORM(platform):
        yield
