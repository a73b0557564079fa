"""Compiled programs, kept for where the same ones are needed again."""

import contextlib
import tempfile
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

__all__ = ["compiled_once"]


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Compiles a program once within the block, however often `fit` or `jax.jit` makes it anew.

    Trainings of one model on other data or from other seeds differ by their arguments, hardly by
    their programs, and compiling can take longer than training. Programs are kept in JAX's own
    cache on disk, in a folder for the time being; a folder that JAX keeps them in already
    (`jax_compilation_cache_dir`) stays the one.
    """
    options = {
        "jax_compilation_cache_dir": None,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    if before["jax_compilation_cache_dir"]:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, value in {**options, "jax_compilation_cache_dir": folder}.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
