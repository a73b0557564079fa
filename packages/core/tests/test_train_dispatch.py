"""Several steps per call of the compiled program: `fit(..., steps_per_dispatch=K)`."""

import contextlib
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chapbook.core import Batches, Error, Run, Stop, arrays, compile_step, fit, mesh
from chapbook.core.step import Step

ROWS = np.random.default_rng(0)
X = ROWS.normal(size=(96, 4)).astype(np.float32)
Y = (X @ ROWS.normal(size=(4, 2))).astype(np.float32)
KEY = jax.random.key(3)
START = {"weight": np.full((4, 2), 0.1, np.float32), "bias": np.zeros(2, np.float32)}


@pytest.fixture(autouse=True, scope="module")
def compiled_once(tmp_path_factory):
    """Most tests compile the same few programs, so they share them through JAX's cache."""
    wanted = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    for name, value in wanted.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def noisy(model, batch, key):
    noise = 0.1 * jax.random.normal(key, (2,))
    error = batch["x"] @ model["weight"] + model["bias"] + noise - batch["y"]
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}


def batches(**options):
    return Batches(arrays(x=X, y=Y), 16, **options)


def listed(count):
    source = iter(batches())
    return [next(source) for _ in range(count)]


def poisoned(count, *steps):
    data = enumerate(listed(count), 1)
    return [{**b, "x": b["x"] * np.nan} if step in steps else b for step, b in data]


def trained(most, data, steps, run=None, loss=noisy, **options):
    return fit(loss, START, optax.adam(0.05), data, steps=steps, key=KEY, run=run,
               steps_per_dispatch=most, **options)  # fmt: skip


def same(one, two):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def steady(rows):
    """Rows without what depends on the clock."""
    timed = ("seconds", "step_ms", "examples/s")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]


def breaking(source, at):
    """Batches that break down before batch `at`, as a killed process would."""

    class Breaking:
        count = 0

        def __iter__(self):
            return self

        def __next__(self):
            if self.count == at:
                raise ConnectionError
            self.count += 1
            return next(source)

        def get_state(self):
            return source.get_state()

        def set_state(self, state):
            source.set_state(state)

    return Breaking()


def judged(model, key):
    return {"loss": jnp.abs(model["weight"]).sum()}


# Nothing here divides by 4 or 7, so that calls of all sizes come about.
EVERY = {"log_every": 5, "save_every": 9, "evaluate_every": 6}


@pytest.mark.parametrize("most", [4, 7])
def test_any_number_of_steps_per_dispatch_gives_the_same_weights_and_rows(most):
    calls = {}

    def noting(kept):
        return [lambda step, model_fn, row: kept.append((step, row.get("step"), model_fn()))]

    for count in (1, most):
        calls[count] = []
        result = trained(count, batches(), 31, evaluate=judged, callbacks=noting(calls[count]),
                         **EVERY)  # fmt: skip
        calls[count].append((result.step, result.reason, result.model))
        calls[count].append(steady(result.metrics.to_dicts()))
    assert calls[most][-1] == calls[1][-1]
    for one, several in zip(calls[1][:-1], calls[most][:-1], strict=True):
        assert one[:2] == several[:2]
        same(one[2], several[2])


def test_a_run_broken_off_ends_the_same_with_any_numbers(tmp_path):
    def run(name, most, data):
        with Run(tmp_path / name, {}) as folder:
            return trained(most, data, 31, folder, evaluate=judged,
                           stop=Stop("valid/loss", mode="max", patience=9), **EVERY)  # fmt: skip

    whole = run("whole", 1, batches())
    for most, left in ((4, 12), (1, 8), (7, 10)):  # saved in the middle of open rows
        with pytest.raises(ConnectionError):
            run("broken", most, breaking(batches(), left))
    result = run("broken", 4, batches())
    same(result.model, whole.model)
    assert result.best == whole.best
    assert steady(result.metrics.to_dicts()) == steady(whole.metrics.to_dicts())


@pytest.mark.parametrize("on_nan", ["skip", "stop", "rewind"])
def test_each_step_of_a_call_is_guarded(tmp_path, on_nan):
    ends = []
    for most in (1, 4):
        with Run(tmp_path / str(most), {}) as run:
            result = trained(most, poisoned(20, 6, 7), 20, run, on_nan=on_nan, nan_limit=2,
                             log_every=10, save_every=5)  # fmt: skip
        events = [json.loads(line) for line in (run.path / "events.jsonl").open()]
        events = [{k: v for k, v in event.items() if k != "time"} for event in events]
        ends.append((result.reason, result.step, steady(result.metrics.to_dicts()), events))
        ends.append(jax.tree.map(np.asarray, result.model))
    assert ends[0] == ends[2]
    assert ends[0][:2] == (("nan", 5) if on_nan == "stop" else ("steps", 20))
    noticed = {"skip": [6, 7], "stop": [6], "rewind": [6, 7, 10]}
    assert [event["step"] for event in ends[0][3]] == noticed[on_nan]
    same(ends[1], ends[3])


def test_a_run_of_calls_of_all_sizes_is_traced_and_compiled_once():
    traced, compiled = [], []

    def loss(model, batch, key):
        traced.append(0)
        return noisy(model, batch, key)

    def listen(event, duration_secs, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        trained(4, batches(), 11, loss=loss, **EVERY)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert (len(traced), compiled.count("jit(flat)")) == (1, 1)


def test_training_ends_with_the_data_and_the_batches_stand_there():
    data = batches(epochs=1)
    result = trained(4, data, 100)
    assert (result.reason, result.step) == ("data", 6)
    same(result.model, trained(1, batches(epochs=1), 100).model)
    endless = batches()
    trained(4, endless, 6)
    same(next(iter(endless)), listed(7)[6])


def test_a_signal_is_heard_at_the_end_of_the_call(tmp_path):
    class Told(Batches):
        drawn = 0

        def take(self, part):
            self.drawn += 1
            if self.drawn == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().take(part)

    with Run(tmp_path / "run", {}) as run:
        result = trained(4, Told(arrays(x=X, y=Y), 16), 16, run)
    assert (result.reason, result.step) == ("preempted", 8)
    assert (run.path / "checkpoints" / "8").is_dir()
    with Run(tmp_path / "run", {}) as run:
        result = trained(4, batches(), 16, run)
    same(result.model, trained(1, batches(), 16).model)


def test_a_profile_holds_its_very_steps(tmp_path, monkeypatch):
    told = []

    @contextlib.contextmanager
    def trace(folder):
        told.append("start")
        yield
        told.append("end")

    def call(step, *given):
        told.append(len(given))
        return original(step, *given)

    original = Step.__call__
    monkeypatch.setattr(Step, "__call__", call)
    monkeypatch.setattr(jax.profiler, "trace", trace)
    with Run(tmp_path / "run", {}) as run:
        trained(4, batches(), 9, run, profile="3:5")
    assert told == [2, "start", 3, "end", 4]


def test_one_program_of_equal_flops_works_in_place():
    def advance(state, constants, batch):
        traces.append(0)
        state = {"a": batch @ state["a"], "n": state["n"] + 1}
        return state, {"sum": state["a"].sum(), "n": state["n"]}

    traces, steps = [], {}
    data = [np.eye(8, dtype=np.float32) * (i + 1) for i in range(3)]
    for most in (1, 3):
        state = {"a": jnp.ones((8, 8)), "n": jnp.int32(0)}
        steps[most] = compile_step(advance, state, (), data[0], steps_per_dispatch=most)
    assert len(traces) == 2
    assert steps[3].flops == pytest.approx(steps[1].flops, rel=0.1) == pytest.approx(1024, rel=0.2)
    aliased = [step.compiled.memory_analysis().alias_size_in_bytes for step in steps.values()]
    assert aliased == [8 * 8 * 4 + 4] * 2
    rows = np.asarray(steps[3](*data[:2]))[:2]
    np.testing.assert_array_equal(rows, [steps[1](batch) for batch in data[:2]])
    same(steps[3].state, steps[1].state)
    looped = compile_step(
        lambda s, c, b: (jax.lax.fori_loop(0, 3, lambda _, x: x * b, s), {"x": 0.0}),
        jnp.ones(4), (), 2.0, steps_per_dispatch=2,
    )  # fmt: skip
    assert looped.flops is None


def test_fewer_than_one_step_is_an_error():
    with pytest.raises(Error, match="steps_per_dispatch=0 is below 1"):
        trained(0, [], 1)


@pytest.mark.devices(8)
def test_rows_stay_on_their_devices():
    from chapbook.core import train

    kept = {}
    original = train.compile_step

    def keep(*arguments, **options):
        kept["step"] = original(*arguments, **options)
        return kept["step"]

    train.compile_step = keep
    try:
        eight = trained(3, batches(), 20, mesh=mesh("data=8"))
    finally:
        train.compile_step = original
    hlo = kept["step"].compiled.as_text()
    assert "all-reduce" in hlo
    assert not any(name in hlo for name in ("all-gather", "all-to-all", "collective-permute"))
    assert "f32[3,2,4]" in hlo and "f32[3,16,4]" not in hlo
    one = trained(1, batches(), 20, mesh=mesh("data=1", devices=jax.devices()[:1]))
    for a, b in zip(jax.tree.leaves(eight.model), jax.tree.leaves(one.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
