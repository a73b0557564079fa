from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from chapbook.core import compiled_once

FOLDER = "jax_compilation_cache_dir"
HIT = "/jax/compilation_cache/cache_hits"


@pytest.fixture
def hits() -> Iterator[list[str]]:
    """Names of events: one `HIT` for each program that was not compiled again."""
    seen: list[str] = []

    def note(event: str, **facts: str | int) -> None:
        seen.append(event)

    jax.monitoring.register_event_listener(note)
    yield seen
    jax.monitoring.unregister_event_listener(note)


def result(seed: float) -> float:
    # Another function each time, as each call of `fit` makes one: JAX's cache in memory misses.
    return float(jax.jit(lambda x: jnp.sum(jnp.sin(x) ** 3))(jnp.arange(5.0) + seed))


def test_a_program_is_compiled_once_within_the_block_and_gives_the_same(hits):
    apart = [result(seed) for seed in (0.0, 1.0)]
    assert HIT not in hits
    with compiled_once():
        first = result(0.0)
        before = hits.count(HIT)
        second = result(1.0)
        assert hits.count(HIT) > before
    assert [first, second] == apart
    before = hits.count(HIT)
    result(0.0)
    assert hits.count(HIT) == before


def test_settings_come_back_even_after_an_error():
    names = [name for name in jax.config.values if "cache" in name]
    before = {name: getattr(jax.config, name) for name in names}
    with pytest.raises(RuntimeError, match="stop"), compiled_once():
        assert getattr(jax.config, FOLDER)
        raise RuntimeError("stop")
    assert {name: getattr(jax.config, name) for name in names} == before


def test_a_folder_that_is_set_already_stays_the_one(tmp_path):
    jax.config.update(FOLDER, str(tmp_path))
    try:
        with compiled_once():
            assert getattr(jax.config, FOLDER) == str(tmp_path)
        assert getattr(jax.config, FOLDER) == str(tmp_path)
    finally:
        jax.config.update(FOLDER, None)
