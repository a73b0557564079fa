import json
import os
import signal
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chapbook.core import (
    Batches,
    Error,
    Run,
    Stop,
    arrays,
    compile_step,
    fit,
    mean_over,
    mesh,
    place,
)
from chapbook.core.log import Log, peak_flops
from chapbook.core.sharding import axes, shardings
from chapbook.core.train import Policy

ROWS = np.random.default_rng(0)
X = ROWS.normal(size=(96, 4)).astype(np.float32)
Y = (X @ ROWS.normal(size=(4, 2)) + 0.1 * ROWS.normal(size=(96, 2))).astype(np.float32)
KEY = jax.random.key(3)


class Linear(eqx.Module):
    weight: jax.Array = axes("embed", "mlp")
    bias: jax.Array = axes("mlp")


def linear() -> Linear:
    return Linear(jnp.full((4, 2), 0.1), jnp.zeros(2))


def square(model, batch, key):
    error = batch["x"] @ model.weight + model.bias - batch["y"]
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}


def batches(batch=16, **options):
    return Batches(arrays(x=X, y=Y), batch, **options)


def listed(count, batch=16):
    source = iter(batches(batch))
    return [next(source) for _ in range(count)]


def same(one, two, tolerance=0.0):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        if tolerance:
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def by_hand(data, optimizer, model=None):
    """The reference: a plain loop in float32 on one device, without jit."""
    model = linear() if model is None else model
    state = optimizer.init(model)
    for batch in data:
        grads = jax.grad(lambda m, b=batch: square(m, b, None)[0])(model)
        updates, state = optimizer.update(grads, state, model)
        model = eqx.apply_updates(model, updates)
    return model


def steady(rows):
    """Rows without what depends on the clock."""
    timed = ("seconds", "step_ms", "examples/s", "tokens/s")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]


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


class BrokenError(Exception):
    pass


def breaking(source, at):
    """Batches that break down before batch `at`, as a killed process would."""

    class Breaking:
        count = 0

        def __iter__(self):
            return self

        def __next__(self):
            if self.count == at:
                raise BrokenError
            self.count += 1
            return next(source)

        def get_state(self):
            return source.get_state()

        def set_state(self, state):
            source.set_state(state)

    return Breaking()


# ------------------------------------------------------------------------------ what is trained


def test_fit_equals_a_hand_written_loop():
    result = fit(square, linear(), optax.adam(0.1), batches(), steps=12, key=KEY)
    same(result.model, by_hand(listed(12), optax.adam(0.1)), 1e-5)
    assert (result.reason, result.step) == ("steps", 12)


def test_the_callers_model_is_left_intact():
    model = linear()
    fit(square, model, optax.sgd(0.1), batches(), steps=3, key=KEY)
    same(model, linear())


def test_an_optimizer_that_keeps_the_parameters_may_be_donated_with_them():
    def init(params):
        return {"first": params}

    def update(updates, state, params=None):
        return jax.tree.map(jnp.negative, updates), state

    keeps = optax.GradientTransformation(init, update)
    result = fit(square, linear(), keeps, batches(), steps=3, key=KEY)
    same(result.model, by_hand(listed(3), optax.sgd(1.0)), 1e-5)


def test_every_step_draws_from_its_own_folded_key():
    def noisy(model, batch, key):
        return jnp.sum(model * jax.random.normal(key, (3,)))

    result = fit(noisy, jnp.zeros(3), optax.sgd(1.0), listed(4), steps=4, key=KEY)
    keys = [jax.random.fold_in(jax.random.fold_in(KEY, step), 0) for step in range(4)]
    same(result.model, -sum(jax.random.normal(key, (3,)) for key in keys), 1e-6)


def weighted(model, batch, key):
    weight = batch["weight"].sum()
    error = ((batch["x"] @ model.weight + model.bias - batch["y"]) ** 2).mean(-1)
    mean = jnp.sum(error * batch["weight"]) / weight
    return mean, {"weight": weight, "first": jnp.sum(batch["weight"] * batch["x"][:, 0]) / weight}


@pytest.mark.parametrize("accumulate", [1, 2, 4, 8])
def test_accumulation_equals_the_full_batch_with_uneven_weights(accumulate):
    weight = np.arange(16, dtype=np.float32) % 5
    weight[[1, 9]] = 0  # with accumulate=8, a microbatch of padding alone, whose loss is 0 / 0
    batch = {"x": X[:16], "y": Y[:16], "weight": weight}
    result = fit(
        weighted, linear(), optax.sgd(1.0), [batch], steps=1, key=KEY, accumulate=accumulate
    )
    (value, aux), grads = jax.value_and_grad(weighted, has_aux=True)(linear(), batch, None)
    same(result.model, jax.tree.map(jnp.subtract, linear(), grads), 1e-6)
    row = result.metrics.row(0, named=True)
    np.testing.assert_allclose([row["loss"], row["first"]], [value, aux["first"]], rtol=1e-5)


def test_a_batch_that_does_not_split_is_an_error():
    with pytest.raises(Error, match=r"shape \(16, 4\).*does not split into accumulate=3"):
        fit(square, linear(), optax.sgd(0.1), batches(), steps=1, key=KEY, accumulate=3)


def test_bfloat16_computes_in_bfloat16_and_trains_float32():
    seen = []

    def loss(model, batch, key):
        seen.append(model.weight.dtype)
        return square(model, batch, key)

    result = fit(loss, linear(), optax.sgd(0.1), batches(), steps=2, key=KEY, precision="bfloat16")
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}
    assert result.model.weight.dtype == jnp.float32
    same(result.model, by_hand(listed(2), optax.sgd(0.1)), 2e-2)
    assert not np.array_equal(result.model.weight, by_hand(listed(2), optax.sgd(0.1)).weight)
    with pytest.raises(Error, match='precision "fp8" is neither'):
        Policy.of("fp8")


def test_frozen_arrays_stay_as_they_are():
    def only_bias(leaf):
        return eqx.is_inexact_array(leaf) and leaf.ndim == 1

    model = linear()
    result = fit(square, model, optax.adam(0.1), batches(), steps=3, key=KEY, trainable=only_bias)
    same(result.model.weight, model.weight)
    assert np.abs(result.model.bias).min() > 0.1


def test_a_loss_may_not_return_a_name_that_fit_reports():
    with pytest.raises(Error, match="the loss returns grad_norm"):
        fit(lambda m, b, k: (m.sum(), {"grad_norm": 0.0}), jnp.ones(2), optax.sgd(1.0), listed(1),
            steps=1, key=KEY)  # fmt: skip


# --------------------------------------------------------------------------------- not finite


def poisoned(data, *steps):
    return [
        {**batch, "x": batch["x"] * np.nan} if step in steps else batch
        for step, batch in enumerate(data, 1)
    ]


def test_a_skipped_batch_is_as_if_it_had_never_been_seen(tmp_path):
    data = listed(20)
    with Run(tmp_path / "run", {}) as run:
        result = fit(
            square, linear(), optax.adam(0.1), poisoned(data, 7), steps=20, key=KEY, run=run
        )
    same(result.model, by_hand(data[:6] + data[7:], optax.adam(0.1)), 1e-5)
    assert result.metrics["skipped"].to_list() == [1]
    assert np.isfinite(result.metrics["loss"].to_list()).all()
    (event,) = map(json.loads, (run.path / "events.jsonl").read_text().splitlines())
    assert (event["kind"], event["step"], event["loss"]) == ("skipped", 7, "nan")


def test_an_event_names_the_position_of_the_batch(tmp_path):
    x = X.copy()
    x[17] = np.inf
    data = Batches(arrays(x=x, y=Y), 16, shuffle=False)
    with Run(tmp_path / "run", {}) as run:
        fit(square, linear(), optax.sgd(0.1), data, steps=4, key=KEY, run=run)
    (event,) = map(json.loads, (run.path / "events.jsonl").read_text().splitlines())
    assert event["data"] == {"seed": 0, "epoch": 0, "position": 32}


def test_stop_keeps_the_parameters_of_the_step_before(capsys):
    data = poisoned(listed(20), 7)
    result = fit(
        square, linear(), optax.adam(0.1), data, steps=20, key=KEY, on_nan="stop", log_every=5
    )
    assert (result.reason, result.step) == ("nan", 6)
    same(result.model, by_hand(data[:6], optax.adam(0.1)), 1e-5)
    assert "stopped at step 6: the loss is nan" in capsys.readouterr().err


def test_off_lets_nan_through():
    data = poisoned(listed(3), 2)
    result = fit(square, linear(), optax.sgd(0.1), data, steps=3, key=KEY, on_nan="off")
    assert np.isnan(result.model.weight).all()
    assert result.metrics["loss"].to_list() == [None]


def test_rewind_goes_on_after_the_bad_window(tmp_path, capsys):
    data = poisoned(listed(20), 7, 8)
    with Run(tmp_path / "run", {}) as run:
        result = fit(square, linear(), optax.adam(0.1), data, steps=20, key=KEY, run=run,
                     on_nan="rewind", nan_limit=2, save_every=5, log_every=10)  # fmt: skip
    # Step 10 notices; the parameters go back to step 5, the data goes on with batch 11.
    same(result.model, by_hand(data[:5] + data[10:], optax.adam(0.1)), 1e-5)
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events] == ["skipped", "skipped", "rewind"]
    assert (events[-1]["step"], events[-1]["to"], events[-1]["since"]) == (10, 5, 7)
    assert "2 updates in a row were not finite; back to" in capsys.readouterr().err


def test_rewind_gives_up_after_three_times(tmp_path, capsys):
    data = poisoned(listed(40), *range(1, 41))
    with Run(tmp_path / "run", {}) as run:
        result = fit(square, linear(), optax.adam(0.1), data, steps=40, key=KEY, run=run,
                     on_nan="rewind", log_every=5, save_every=5)  # fmt: skip
    assert (result.reason, result.step) == ("nan", 20)
    same(result.model, linear())
    assert "stopped at step 20: 5 updates in a row" in capsys.readouterr().err


def test_a_spike_in_the_loss_rewinds(tmp_path):
    data = listed(40)
    data[27] = {"x": data[27]["x"], "y": data[27]["y"] + 1e3}
    with Run(tmp_path / "run", {}) as run:
        result = fit(square, linear(), optax.sgd(0.05), data, steps=40, key=KEY, run=run,
                     on_nan="rewind", spike=50.0, log_every=10, save_every=25)  # fmt: skip
    same(result.model, by_hand(data[:25] + data[30:], optax.sgd(0.05)), 1e-5)


@pytest.mark.parametrize(("count", "back"), [(3, None), (4, 20)])
def test_losses_must_stay_above_a_bound_and_the_checkpoint_gone_back_to_be_healthy(
    tmp_path, count, back
):
    data = listed(40)
    for number in range(30 - count, 30):
        data[number] = {"x": data[number]["x"], "y": data[number]["y"] + 1e3}
    with Run(tmp_path / "run", {}) as run:
        result = fit(square, linear(), optax.sgd(1e-5), data, steps=40, key=KEY, run=run,
                     on_nan="rewind", spike=lambda losses: max(losses) + 100, spike_steps=4,
                     log_every=10, save_every=5)  # fmt: skip
    # The checkpoint of step 25 has a single step without trouble behind it.
    known = data if back is None else data[:back] + data[30:]
    same(result.model, by_hand(known, optax.sgd(1e-5)), 1e-5)
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    told = ["spike"] * count + ["rewind"] * (back is not None)
    assert [event["kind"] for event in events] == told
    assert back is None or (events[-1]["to"], events[-1]["since"]) == (back, 27)


def normed(model, batch, key, extra):
    mean = batch["x"].mean(0)
    error = (batch["x"] - mean) @ model.weight + model.bias - batch["y"]
    extra = {"mean": 0.9 * extra["mean"] + 0.1 * mean, "count": extra["count"] + 1}
    return jnp.mean(error**2), {"extra": extra}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_extra_state_is_threaded_through_microbatches_and_the_guard(accumulate):
    data = poisoned(listed(6), 3)
    start = {"mean": jnp.zeros(4), "count": jnp.int32(0)}
    seen = []

    def evaluate(model, key, extra):
        seen.append(int(extra["count"]))
        return {"count": extra["count"]}

    result = fit(normed, linear(), optax.sgd(0.1), data, steps=6, key=KEY, extra=start,
                 accumulate=accumulate, evaluate=evaluate, evaluate_every=3)  # fmt: skip
    mean = np.zeros(4)
    for batch in data[:2] + data[3:]:
        for part in range(accumulate):
            mean = 0.9 * mean + 0.1 * batch["x"][part::accumulate].mean(0)
    np.testing.assert_allclose(result.extra["mean"], mean, rtol=1e-5)
    assert seen == [2 * accumulate, 5 * accumulate]


# ------------------------------------------------------------------------------ metrics, hooks


def test_rows_are_the_means_of_their_windows(tmp_path):
    data = listed(10)
    with Run(tmp_path / "run", {}) as run:
        result = fit(
            square, linear(), optax.sgd(0.0), data, steps=10, key=KEY, run=run, log_every=4
        )
    losses = [float(square(linear(), batch, None)[0]) for batch in data]
    expected = [np.mean(losses[:4]), np.mean(losses[4:8]), np.mean(losses[8:])]
    assert result.metrics["step"].to_list() == [4, 8, 10]
    np.testing.assert_allclose(result.metrics["loss"], expected, rtol=1e-5)
    assert result.metrics["examples"].to_list() == [64, 128, 160]
    assert run.rows() == result.metrics.to_dicts()
    assert {"grad_norm", "mae", "step_ms", "examples/s", "seconds"} <= set(result.metrics.columns)
    assert not {"mfu", "hfu", "peak_bytes"} & set(result.metrics.columns)


def test_a_window_is_fetched_when_the_next_is_full():
    log = Log(["loss"], every=2, quiet=True)
    for step in (1, 2, 3):
        log.add(step, jnp.array([float(step)]))
        assert log.rows == []
    log.add(4, jnp.array([4.0]))
    assert [(row["step"], row["loss"]) for row in log.rows] == [(2, 1.5)]
    log.flush()
    assert [(row["step"], row["loss"]) for row in log.rows] == [(2, 1.5), (4, 3.5)]


def test_the_learning_rate_is_reported_where_the_optimizer_holds_it():
    optimizer = optax.inject_hyperparams(optax.adam)(
        learning_rate=optax.linear_schedule(0.1, 0.0, 10)
    )
    result = fit(square, linear(), optimizer, batches(), steps=4, key=KEY, log_every=2)
    np.testing.assert_allclose(result.metrics["learning_rate"], [0.09, 0.07], rtol=1e-5)


def test_callbacks_get_the_step_a_model_and_the_row():
    calls = []

    def callback(step, model_fn, row):
        calls.append((step, row.get("step"), model_fn()))

    result = fit(square, linear(), optax.adam(0.1), batches(), steps=6, key=KEY, log_every=2,
                 callbacks=[callback])  # fmt: skip
    assert [call[:2] for call in calls] == [(2, None), (4, 2), (6, 4), (6, 6)]
    for steps, call in zip((2, 4), calls, strict=False):  # not deleted by later steps
        same(call[2], by_hand(listed(steps), optax.adam(0.1)), 1e-5)
    same(calls[-1][2], result.model)


def test_evaluation_is_merged_into_the_row_and_advances_nothing():
    keys = []

    def evaluate(model, key):
        keys.append(jax.random.key_data(key).tolist())
        return {"loss": jnp.float32(2), "test/loss": 3.0}

    plain = fit(square, linear(), optax.adam(0.1), batches(), steps=7, key=KEY)
    result = fit(square, linear(), optax.adam(0.1), batches(), steps=7, key=KEY, log_every=4,
                 evaluate=evaluate, evaluate_every=3)  # fmt: skip
    same(result.model, plain.model)
    assert result.metrics["step"].to_list() == [3, 4, 6, 7]
    assert result.metrics["valid/loss"].to_list() == [2.0, None, 2.0, 2.0]
    assert result.metrics["test/loss"].to_list() == [3.0, None, 3.0, 3.0]
    assert len(keys) == 3 and len({str(key) for key in keys}) == 1


def test_mean_over_leaves_out_padding_and_weighs():
    weight = np.arange(96, dtype=np.float32) % 3
    data = Batches(
        arrays(x=X, w=weight), 40, shuffle=False, epochs=1, drop_last=False
    )  # the last batch holds 16 rows and 24 of padding

    def fn(model, batch, key):
        value = jnp.where(batch["mask"], batch["x"][:, 0], jnp.nan)
        return {"x": value, "row": batch["x"], "weight": batch["w"]}

    evaluate = mean_over(fn, data)
    for _ in range(2):
        found = evaluate(linear(), KEY)
        np.testing.assert_allclose(found["x"], np.average(X[:, 0], weights=weight), rtol=1e-5)
        rows = np.average(X.mean(1), weights=weight)
        np.testing.assert_allclose(found["row"], rows, rtol=1e-4, atol=1e-6)
    with pytest.raises(Error, match="one value per example"):
        mean_over(lambda m, b, k: {"x": jnp.float32(1)}, data)(linear(), KEY)


def test_peaks_are_known_for_exact_chips_alone():
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == peak_flops("TPU v5") == 459e12
    assert peak_flops("cpu") is peak_flops("NVIDIA H100 PCIe") is peak_flops("TPU v4i") is None


def test_utilisation_and_rates_are_those_of_the_unpaused_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("chapbook.core.log.time.perf_counter", lambda: now[0])
    log = Log(["loss"], every=2, counts={"examples": 10, "tokens": 30}, ideal={"mfu": 0.5},
              quiet=True)  # fmt: skip
    for step in (1, 2):
        now[0] += 2.0
        log.add(step, jnp.array([1.0]))
        with log.pause():
            now[0] += 100.0
    for step in (3, 4):
        now[0] += 1.0
        log.add(step, jnp.array([1.0]))
    log.flush()
    first, second = log.rows
    assert (first["step_ms"], first["tokens/s"], first["mfu"]) == (2000.0, 15.0, 0.25)
    assert (second["step_ms"], second["examples/s"], second["mfu"]) == (1000.0, 10.0, 0.5)
    assert (first["seconds"], second["seconds"]) == (4.0, 6.0)


def test_progress_off_a_terminal_is_a_line_every_ten_seconds(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("chapbook.core.log.time.monotonic", lambda: now[0])
    for quiet in (False, True):
        log = Log(["loss"], every=1, steps=100, counts={"examples": 8}, quiet=quiet)
        for step in range(1, 28):
            now[0] += 1.0
            log.add(step, jnp.array([0.25]))
        log.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 9/100  loss 0.25") and lines[0].endswith("left")


def test_profile_traces_steps_into_the_run(tmp_path, capsys):
    with Run(tmp_path / "run", {}) as run:
        result = fit(square, linear(), optax.sgd(0.1), batches(), steps=6, key=KEY, run=run,
                     profile="2:3", log_every=3)  # fmt: skip
    assert list((run.path / "profile").rglob("*.xplane.pb"))
    assert "profile in" in capsys.readouterr().err
    assert result.metrics["step"].to_list() == [3, 6]
    with (
        Run(tmp_path / "other", {}) as run,
        pytest.raises(Error, match='profile="3" is not first:last'),
    ):
        fit(square, linear(), optax.sgd(0.1), [], steps=6, key=KEY, run=run, profile="3")


# --------------------------------------------------------------------------- the compiled step


def test_a_step_gives_its_buffers_to_the_next():
    def advance(state, constants, batch):
        new = {"a": state["a"] + batch.sum(), "n": state["n"] + 1}
        return new, {"sum": new["a"].sum()}

    state = {"a": jnp.zeros((64, 64)), "n": jnp.int32(0)}
    held = jnp.ones(3)
    step = compile_step(advance, state, held, jnp.ones(8))
    values = step(jnp.ones(8))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not held.is_deleted()
    assert step.compiled.memory_analysis().alias_size_in_bytes == 64 * 64 * 4 + 4
    assert step.names == ("sum",) and float(values[0]) == 8 * 64 * 64
    before = jax.tree.leaves(step.state)
    step(jnp.ones(8))
    assert all(leaf.is_deleted() for leaf in before)
    assert int(step.state["n"]) == 2


def test_a_step_that_does_not_fit_the_device_names_three_remedies():
    with pytest.raises(Error, match=r"a step needs .* GB on a device that has 1e-06 GB") as caught:
        compile_step(lambda s, c, b: (s + b, {"b": b[0]}), jnp.ones(999), (), jnp.ones(999),
                     memory=1000)  # fmt: skip
    assert caught.value.hint is not None
    assert all(word in caught.value.hint for word in ("accumulate", "fsdp", "jax.checkpoint"))


def test_a_step_that_changes_the_states_form_is_an_error():
    with pytest.raises(Error, match=r"changes state\['a'\] from float32\[3\] to float32\[6\]"):
        compile_step(lambda s, c, b: ({"a": jnp.tile(s["a"], 2)}, {}), {"a": jnp.ones(3)}, (), ())
    with pytest.raises(Error, match="changes the structure of the state"):
        compile_step(lambda s, c, b: ({"b": s["a"]}, {}), {"a": jnp.ones(3)}, (), ())


def test_flops_are_not_counted_through_loops_and_recomputation_is_noticed():
    def looped(state, constants, batch):
        return jax.lax.scan(lambda s, _: (s * 2, None), state, None, length=3)[0], {"x": 0.0}

    def recomputed(state, constants, batch):
        wave = jax.checkpoint(lambda s: jnp.sin(jnp.sin(s)).sum())
        return state - jax.grad(wave)(state), {"x": 0.0}

    assert compile_step(looped, jnp.ones(4), (), ()).flops is None
    assert compile_step(recomputed, jnp.ones(4), (), ()).recomputes
    plain = compile_step(lambda s, c, b: (b @ s, {"x": 0.0}), jnp.ones((8, 8)), (), jnp.eye(8))
    assert not plain.recomputes
    assert plain.flops == pytest.approx(2 * 8**3, rel=0.2)


def test_one_program_serves_a_whole_run(tmp_path):
    compiled = []
    name = "/jax/core/compile/backend_compile_duration"
    model = Linear(jnp.full((4, 2), 0.1), jnp.add(0.0, 0.0) * jnp.ones(2))
    weak = (model, jnp.add(1.0, 1.0))  # a weakly typed scalar among the parameters

    def loss(model, batch, key):
        value = square(model[0], batch, key)[0] * model[1]
        return value + 0 * jnp.where(batch["mask"].all(), 1.0, 2.0)

    evaluate = mean_over(
        lambda m, b, k: {"x": b["x"][:, 0]},
        batches(40, epochs=1, shuffle=False, drop_last=False),
    )

    def listen(event, duration_secs, **details):
        if event == name:
            compiled.append(details.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with Run(tmp_path / "run", {}) as run:
            fit(loss, weak, optax.adam(0.1), batches(40, drop_last=False), steps=9, key=KEY,
                evaluate=evaluate, evaluate_every=3, save_every=2, log_every=2, run=run,
                )  # fmt: skip
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled.count("jit(flat)") == compiled.count("jit(pairs)") == 1


# ------------------------------------------------------------------------------------- resume


def test_a_run_that_broke_off_ends_as_an_unbroken_one(tmp_path):
    def trained(path, data):
        evaluate = mean_over(
            lambda m, b, k: {"loss": ((b["x"] @ m.weight + m.bias - b["y"]) ** 2).mean(-1)},
            batches(32, epochs=1, shuffle=False, drop_last=False),
        )
        with Run(path, {"seed": 0}) as run:
            return fit(square, linear(), optax.adam(0.05), data, steps=30, key=KEY, run=run,
                       log_every=4, save_every=7, evaluate=evaluate, evaluate_every=5,
                       stop=Stop("valid/loss", patience=20))  # fmt: skip

    whole = trained(tmp_path / "whole", batches())
    for left in (9, 3, 11):
        with pytest.raises(BrokenError):
            trained(tmp_path / "broken", breaking(batches(), left))
    result = trained(tmp_path / "broken", batches())
    same(result.model, whole.model)
    assert result.best == whole.best
    assert steady(result.metrics.to_dicts()) == steady(whole.metrics.to_dicts())
    again = trained(tmp_path / "broken", batches())
    same(again.model, whole.model)
    assert again.metrics.to_dicts() == result.metrics.to_dicts()


def test_batches_without_a_state_cannot_be_resumed(tmp_path):
    for steps in (2, 4):
        with Run(tmp_path / "run", {}) as run:
            if steps == 2:
                fit(square, linear(), optax.sgd(0.1), listed(2), steps=2, key=KEY, run=run)
            else:
                with pytest.raises(Error, match="cannot be resumed: they have no get_state"):
                    fit(square, linear(), optax.sgd(0.1), listed(4), steps=4, key=KEY, run=run)


def test_placed_batches_are_taken_as_they_are():
    with place(batches(), mesh("auto")) as placed:
        result = fit(square, linear(), optax.adam(0.1), placed, steps=3, key=KEY)
        same(next(placed), listed(4)[3])  # left open, and where training ended
    same(result.model, by_hand(listed(3), optax.adam(0.1)), 1e-5)


def test_a_state_of_bytes_as_grains_loader_gives_is_kept(tmp_path):
    class Loader:
        def __init__(self):
            self.batches = batches()

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.batches)

        def get_state(self):
            return json.dumps(self.batches.get_state()).encode()

        def set_state(self, state):
            self.batches.set_state(json.loads(state))

    for steps in (3, 6):
        with Run(tmp_path / "run", {}) as run:
            result = fit(square, linear(), optax.adam(0.1), Loader(), steps=steps, key=KEY, run=run)
    same(result.model, by_hand(listed(6), optax.adam(0.1)), 1e-5)


def test_training_ends_with_the_data():
    data = batches(epochs=1)
    result = fit(square, linear(), optax.sgd(0.1), data, steps=100, key=KEY, log_every=4)
    assert (result.reason, result.step) == ("data", 6)
    assert result.metrics["step"].to_list() == [4, 6]
    with pytest.raises(Error, match="the data holds no batch"):
        fit(square, linear(), optax.sgd(0.1), [], steps=1, key=KEY)


def test_what_was_read_ahead_goes_back():
    data = batches()
    fit(square, linear(), optax.sgd(0.1), data, steps=2, key=KEY)
    same(next(iter(data)), listed(3)[2])


def test_early_stop_returns_the_best_model_and_survives_a_break(tmp_path):
    scores = [5.0, 3.0, 4.0, 2.0, 2.5, 2.0, 9.0, 1.0]

    def trained(path, data, steps=16):
        def evaluate(model, key):
            step = round(float(model.bias[0]))
            return {"score": scores[step // 2 - 1]}

        def loss(model, batch, key):
            return -model.bias.sum(), {}  # each step of sgd(1.0) adds 1 to the bias

        if path is None:
            return fit(loss, linear(), optax.sgd(1.0), data, steps=steps, key=KEY,
                       evaluate=evaluate, evaluate_every=2,
                       stop=Stop("valid/score", patience=3))  # fmt: skip
        with Run(path, {}) as run:
            return fit(loss, linear(), optax.sgd(1.0), data, steps=steps, key=KEY, run=run,
                       evaluate=evaluate, evaluate_every=2, save_every=3,
                       stop=Stop("valid/score", patience=3))  # fmt: skip

    with pytest.raises(BrokenError):
        trained(tmp_path / "run", breaking(batches(), 11))
    for _ in range(2):  # the second finds the run ended
        result = trained(tmp_path / "run", batches())
        assert (result.reason, result.step, result.best) == ("early stop", 14, 8)
        same(result.model.bias, np.full(2, 8.0))
    assert [path.name for path in (tmp_path / "run" / "best").iterdir()] == ["8"]
    memory = trained(None, batches())
    assert (memory.reason, memory.best) == ("early stop", 8)
    same(memory.model.bias, np.full(2, 8.0))


def test_stop_reads_its_metric_or_says_what_there_is():
    with pytest.raises(Error, match="no metric valid/accuracy; evaluate gives valid/loss"):
        fit(square, linear(), optax.sgd(0.1), batches(), steps=2, key=KEY,
            evaluate=lambda m, k: {"loss": 1.0}, stop=Stop("valid/accuracy"))  # fmt: skip
    assert Stop("a", mode="max", min_delta=0.1).improves(1.2, 1.0)
    assert not Stop("a", mode="max", min_delta=0.1).improves(1.05, 1.0)
    assert not Stop("a").improves(float("nan"), None)
    with pytest.raises(Error, match='mode="best" is neither min nor max'):
        Stop("a", mode="best")


# ------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize(
    ("number", "reason", "code"),
    [(signal.SIGTERM, "preempted", 143), (signal.SIGINT, "interrupted", 130)],
)
def test_a_signal_saves_the_very_step(tmp_path, capsys, number, reason, code):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def callback(step, model_fn, row):
        if step == 5 and row.get("step") == 4:
            os.kill(os.getpid(), number)

    for steps in (9, 9):
        with Run(tmp_path / "run", {}) as run:
            result = fit(square, linear(), optax.adam(0.1), batches(), steps=steps, key=KEY,
                         run=run, log_every=1, callbacks=[callback])  # fmt: skip
        if result.reason != "steps":
            assert (result.reason, result.step, result.exit_code) == (reason, 5, code)
            assert "at step 5, saved; the same command goes on" in capsys.readouterr().err
            assert (run.path / "checkpoints" / "5").is_dir()
    assert (result.reason, result.step, result.exit_code) == ("steps", 9, 0)
    same(result.model, by_hand(listed(9), optax.adam(0.1)), 1e-5)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_interrupt_stops_at_once():
    before = signal.getsignal(signal.SIGINT)

    def callback(step, model_fn, row):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(square, linear(), optax.sgd(0.1), batches(), steps=9, key=KEY, log_every=1,
            callbacks=[callback])  # fmt: skip
    assert signal.getsignal(signal.SIGINT) is before


def test_no_handler_is_installed_outside_the_main_thread():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def train():
        fit(square, linear(), optax.sgd(0.1), batches(), steps=3, key=KEY, log_every=1,
            callbacks=[lambda *_: seen.append(signal.getsignal(signal.SIGTERM))])  # fmt: skip

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen and set(seen) == {before}


# ------------------------------------------------------------------------------------ devices


class Net(eqx.Module):
    up: jax.Array = axes("embed", "mlp")
    down: jax.Array = axes("mlp", "embed")

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.up = 0.5 * jax.random.normal(one, (4, 16))
        self.down = 0.5 * jax.random.normal(two, (16, 2))


def net_loss(model, batch, key):
    noise = 0.01 * jax.random.normal(key, (2,))
    error = jnp.tanh(batch["x"] @ model.up) @ model.down + noise - batch["y"]
    return jnp.mean(error**2)


def net_run(text, steps=30, devices=None, run=None, **options):
    return fit(net_loss, Net(jax.random.key(0)), optax.adam(0.02), batches(), steps=steps, key=KEY,
               mesh=mesh(text, devices=devices), run=run, **options)  # fmt: skip


@pytest.mark.devices(8)
def test_every_mesh_trains_the_same_model(tmp_path):
    one = net_run("data=1", devices=jax.devices()[:1])
    eight = net_run("data=8")
    both = net_run("data=2,model=4")
    same(eight.model, one.model, 1e-5)
    same(both.model, one.model, 1e-5)
    assert both.model.up.sharding.spec == jax.sharding.PartitionSpec(None, "model")
    for text, steps in (("data=8", 14), ("data=2,model=4", 30)):
        with Run(tmp_path / "run", {}) as run:
            moved = net_run(text, steps, run=run, save_every=7)
    same(moved.model, one.model, 1e-5)


@pytest.mark.devices(8)
def test_microbatches_stay_on_their_devices_and_moments_lie_as_parameters():
    seen = {}

    def optimizer_state(step, model_fn, row):
        seen["model"] = model_fn()

    from chapbook.core import train

    kept = {}
    original = train.compile_step

    def keep(*arguments, **options):
        kept["step"] = original(*arguments, **options)
        return kept["step"]

    train.compile_step = keep
    try:
        net_run("data=2,model=4", 2, accumulate=4, callbacks=[optimizer_state])
    finally:
        train.compile_step = original
    hlo = kept["step"].compiled.as_text()
    assert "all-reduce" in hlo
    assert "all-to-all" not in hlo and "collective-permute" not in hlo
    state = kept["step"].state
    plan = shardings(state.params, mesh("data=2,model=4"))
    for tree in (state.params, state.optimizer[0].mu, state.optimizer[0].nu, seen["model"]):
        assert all(
            leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
            for leaf, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(plan), strict=True)
        )
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert kept["step"].compiled.memory_analysis().alias_size_in_bytes == held


@pytest.mark.devices(8)
def test_a_model_on_one_device_outlives_a_training_on_several():
    """The copy on the first device is one: `device_put` alone shares it, and steps give it away."""
    model = Net(jax.random.key(0))
    for text, count in (("data=2", 2), ("data=2,model=2", 4)):
        where = mesh(text, devices=jax.devices()[:count])
        fit(net_loss, model, optax.adam(0.02), batches(), steps=3, key=KEY, mesh=where)
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(model))


@pytest.mark.devices(8)
def test_hundreds_of_steps_on_simulated_devices_do_not_abort():
    result = net_run("data=8", 200, log_every=100)
    assert result.step == 200


@pytest.mark.devices(8)
def test_mean_over_reduces_over_the_devices():
    evaluate = mean_over(
        lambda m, b, k: {"x": b["x"][:, 0]},
        batches(64, epochs=1, shuffle=False, drop_last=False),
        mesh=mesh("data=8"),
    )
    np.testing.assert_allclose(evaluate(None, KEY)["x"], X[:, 0].mean(), rtol=1e-5, atol=1e-7)
