"""XLA's persistent compilation cache."""

from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from mlg_jax._checks import check_real


def enable_compilation_cache(directory: str | Path, *, min_compile_seconds: float = 1.0) -> None:
    """Keeps compiled programs on disk, so that the next process need not compile them again.

    Args:
        directory: made if it is not there; may be shared between experiments.
        min_compile_seconds: programs that compile faster are not kept, >= 0.

    Raises:
        TypeError, ValueError: seconds that are negative.
    """
    check_real("min_compile_seconds", min_compile_seconds, 0.0)
    path = Path(directory).absolute()
    path.mkdir(parents=True, exist_ok=True)
    compilation_cache.reset_cache()  # else a program compiled before this call keeps it off
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float(min_compile_seconds))
