"""XLA's persistent compilation cache."""

from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from mlg_jax._checks import check_real


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
