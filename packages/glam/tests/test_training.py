"""Losses, optimizer and schedule against their equations, and trainings that go wrong."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chapbook.core.data import Batches, tokens
from chapbook.core.errors import Error
from chapbook.core.io import read_jsonl
from chapbook.core.run import Run
from chapbook.glam.config import GLaMConfig
from chapbook.glam.model import GLaM
from chapbook.glam.training import (
    StabilityGuard,
    TrainConfig,
    adafactor,
    evaluation,
    fit,
    objective,
    predicted,
    schedule,
)

LINE = "desk/4E,vocab=32,context=8,layers=2,width=16,hidden=24,heads=2,head=8"
CONFIG = GLaMConfig.from_string(LINE)
RECIPE = TrainConfig(tokens=24 * 4 * 8, batch_size=4, learning_rate=0.03)


def new(seed: int = 0) -> GLaM:
    return eqx.filter_jit(GLaM)(CONFIG, key=jax.random.key(seed))


def stream(count: int = 4000) -> np.ndarray:
    """Counts up modulo 24, in documents of 20 tokens that end with 31."""
    made = np.arange(count) % 24
    made[19::20] = 31
    return made.astype(np.uint16)


class Windows:
    """Windows of a stream, whose documents 31 begins."""

    def __init__(self, count: int = 4000):
        self.windows = tokens(stream(count), 8)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        found = self.windows[rows]["tokens"].astype(np.int32)
        return {"tokens": found, "segment": 1 + np.cumsum(found == 31, -1, dtype=np.int32)}


def batches(seed: int = 0) -> Batches:
    return Batches(Windows(), 4, seed=seed)


def test_the_rate_is_constant_and_then_falls_by_the_root_of_the_steps():
    rate = schedule(TrainConfig(tokens=1))
    found = np.asarray([rate(step) for step in (1, 10_000, 40_000)])
    np.testing.assert_allclose(found, [0.01, 0.01, 0.005], rtol=1e-6)
    warm = schedule(TrainConfig(tokens=1, warmup=4))
    found = np.asarray([warm(step) for step in (0, 1, 3, 9)])
    np.testing.assert_allclose(found, [0.0025, 0.005, 0.01, 0.01], rtol=1e-6)


def test_adafactor_is_that_of_optax_until_its_decay_meets_the_cap():
    params = {"a": jax.random.normal(jax.random.key(0), (130, 140)), "b": jnp.ones(7)}
    ours = adafactor(lambda step: 0.01)
    theirs = optax.adafactor(0.01, decay_rate=0.8, clipping_threshold=1.0)
    states = [each.init(params) for each in (ours, theirs)]
    draw = np.random.default_rng(0)
    steps = [jax.jit(each.update) for each in (ours, theirs)]
    for _ in range(5):
        slopes = jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape), x.dtype), params)
        (one, states[0]), (other, states[1]) = (
            step(slopes, state, params) for step, state in zip(steps, states, strict=True)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other)
        params = optax.apply_updates(params, one)


def test_the_decay_of_the_second_moment_is_capped():
    """With gradients of 1 and then 0, what is left after many steps tells the decay."""
    params = jnp.ones(3)
    rule = adafactor(lambda step: 1.0)
    state = rule.init(params)
    step = jax.jit(rule.update)
    for _ in range(400):
        _, state = step(jnp.ones(3), state, params)
    _, state = step(jnp.zeros(3), state, params)
    # 1 - 401^-0.8 would leave 0.9917.
    moment = jax.tree.leaves(state[0].v)[0]
    np.testing.assert_allclose(moment, 0.99, rtol=1e-5)


def test_padding_is_not_predicted_and_predicts_nothing():
    segments = jnp.asarray([[1, 1, 2, 2, 0], [3, 3, 3, 0, 0]])
    np.testing.assert_array_equal(predicted(segments), [[1, 1, 1, 0], [1, 1, 0, 0]])


def test_the_loss_is_the_sum_of_its_parts():
    model, batch = new(), dict(next(batches()))
    batch["segment"] = batch["segment"].copy()
    batch["segment"][1, -1] = 0  # padding
    total, told = jax.jit(objective())(model, batch, jax.random.key(0))
    segments = jnp.asarray(batch["segment"])
    ids = jnp.asarray(batch["tokens"], jnp.int32)
    logits, routing = eqx.filter_jit(lambda m: m(ids[:, :-1], segments=segments[:, :-1],
                                                 key=jax.random.key(0)))(model)  # fmt: skip
    wide = np.asarray(logits, np.float64)
    normal = np.log(np.exp(wide).sum(-1))
    each = normal - np.take_along_axis(wide, np.asarray(ids)[:, 1:, None], -1)[..., 0]
    weight = np.ones(each.shape, bool)
    weight[1, -1] = False
    task = each[weight].mean()
    assert told["weight"] == weight.sum()
    np.testing.assert_allclose(told["nats"], task, rtol=1e-5)
    flat = 1e-4 * (normal[weight] ** 2).mean()
    np.testing.assert_allclose(total, task + flat + 0.01 * routing.loss, rtol=1e-5)


def test_an_evaluation_gives_bits_of_a_byte():
    model, source = new(), Windows(400)
    found = evaluation(source, bytes_per_token=2.5, batch_size=7)(model, jax.random.key(0))
    ids = np.asarray(source[np.arange(len(source))]["tokens"], np.int32)
    segments = source[np.arange(len(source))]["segment"]
    logits, _ = eqx.filter_jit(lambda m, t, s: m(t, segments=s))(
        model, jnp.asarray(ids[:, :-1]), jnp.asarray(segments[:, :-1])
    )
    each = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), ids[:, 1:, None], -1)[..., 0]
    mean = float(each[np.asarray(predicted(jnp.asarray(segments))) > 0].mean())
    assert found["nats"] == pytest.approx(mean, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(mean / math.log(2) / 2.5, rel=1e-5)


def test_a_model_learns_and_an_interrupted_training_ends_with_the_same_bits(tmp_path):
    options = {"key": jax.random.key(1), "save_every": 8, "log_every": 4, "quiet": True}
    whole = fit(new(), batches(), RECIPE, **options)
    assert whole.metrics["nats"][-1] < 0.8 * whole.metrics["nats"][0]

    class Stopped(Exception):  # noqa: N818
        pass

    def until(count: int):
        walk = batches()
        take = walk.take

        def stop(part):
            nonlocal count
            count -= 1
            if count < 0:
                raise Stopped
            return take(part)

        walk.take = stop
        return walk

    with pytest.raises(Stopped), Run(tmp_path / "run", {}) as run:
        fit(new(), until(13), RECIPE, run=run, **options)
    with Run(tmp_path / "run", {}) as run:
        resumed = fit(new(), batches(), RECIPE, run=run, **options)
    for a, b in zip(jax.tree.leaves(whole.model), jax.tree.leaves(resumed.model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_band_ends_six_deviations_above_the_median_and_a_tenth_of_a_nat_at_least():
    guard = StabilityGuard()
    assert guard.band([1.0, 2.0, 3.0, 4.0, 8.0]) == pytest.approx(3.0 + 6 * 1.0)
    assert StabilityGuard(deviations=2).band([1.0, 2.0, 4.0]) == pytest.approx(2.0 + 2 * 1.0)
    assert guard.band([0.01] * 20) == pytest.approx(0.11)


def test_a_divergence_goes_back_to_a_healthy_checkpoint_and_past_the_data_that_broke_it(tmp_path):
    def noisy():
        draw = np.random.default_rng(0)
        for number, batch in enumerate(batches(), 1):
            if 151 <= number < 157:
                tokens = draw.integers(0, CONFIG.vocab_size, batch["tokens"].shape, np.int32)
                batch = batch | {"tokens": tokens}
            yield batch

    recipe = dataclasses.replace(RECIPE, tokens=160 * 4 * 8)
    with Run(tmp_path / "run", {}) as run:
        made = fit(
            new(), noisy(), recipe, key=jax.random.key(1), run=run, save_every=4, log_every=4,
            quiet=True,
        )  # fmt: skip
    assert made.reason == "steps"
    events = read_jsonl(tmp_path / "run" / "events.jsonl")
    assert [each["kind"] for each in events] == ["spike"] * 6 + ["rewind"]
    # Step 148 is too close to the trouble; that of 144 has five good ones behind it.
    assert (events[-1]["step"], events[-1]["to"], events[-1]["since"]) == (156, 144, 151)


def test_what_does_not_fit_is_refused():
    with pytest.raises(Error, match="tokens=30 do not fill a batch of 4 x 8"):
        fit(new(), batches(), TrainConfig(tokens=30, batch_size=4), key=jax.random.key(0))
    with pytest.raises(Error, match="learning_rate=0 must be above 0"):
        TrainConfig(tokens=1, learning_rate=0)
    with pytest.raises(Error, match="deviations=0 must be above 0"):
        StabilityGuard(deviations=0)
    with pytest.raises(Error, match="steps=0 must be 1 or more"):
        StabilityGuard(steps=0)
