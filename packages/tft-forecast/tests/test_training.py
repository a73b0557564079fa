"""Training through the loop of chapbook.core: meshes, masks and ensembles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core.errors import Error
from chapbook.core.meshes import mesh
from chapbook.tft_forecast import windows
from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.inputs import Group, Layout
from chapbook.tft_forecast.panels import Values
from chapbook.tft_forecast.training import train

# The smallest network: what is tested here is the loop around it.
CONFIG = TFTConfig(
    encoder=6, horizon=3, hidden=4, heads=1, batch_size=8, dropout=0.0, unknown_rate=0.0,
    scaling="none", learning_rate=1e-2, lstm=False, attention=False, selection=False,
)  # fmt: skip
LAYOUT = Layout(Group(), Group(("y",)), Group(("week",)))


def store(y):
    entities, steps = y.shape
    none = np.empty((entities, steps, 0), np.int32)
    week = np.broadcast_to(np.sin(2 * np.pi * np.arange(steps) / 7), y.shape)
    target = np.zeros((entities, 1)), np.ones((entities, 1))
    static = Values(np.empty((entities, 0)), np.empty((entities, 0), np.int32))
    return windows.store(
        static, Values(y[..., None], none), Values(week[..., None], none),
        np.ones(y.shape, bool), target, CONFIG,
    )  # fmt: skip


def series(entities=4, steps=60):
    rng = np.random.default_rng(0)
    return np.sin(2 * np.pi * np.arange(steps) / 7) + rng.normal(0, 0.1, (entities, steps))


def trained(y, config=CONFIG, steps=6, **options):
    pairs = windows.index(~np.isnan(y), config)
    common = {"key": jax.random.key(0), "seed": 0, "evaluate_every": 3, "patience": 5}
    return train(store(y), LAYOUT, config, pairs, None, steps=steps, quiet=True,
                 **common, **options)  # fmt: skip


@pytest.mark.devices(8)
def test_one_two_and_four_devices_give_the_same_losses():
    # Adam turns the rounding of small gradients into whole steps: short ones keep that small.
    config = dataclasses.replace(CONFIG, learning_rate=1e-4)
    y = series()
    losses = []
    for count in (1, 2, 4):
        with jax.default_device(jax.devices()[0]):
            found = trained(y, config, mesh=mesh(f"data={count}", devices=jax.devices()[:count]))
        losses.append(found.metrics["loss"].to_numpy())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-5)


def test_microbatches_add_up_to_the_batch():
    y = series()
    y[0, ::4] = y[1, 10:40] = np.nan  # so that microbatches weigh differently
    config = dataclasses.replace(CONFIG, learning_rate=1e-4)
    whole, parts = (trained(y, dataclasses.replace(config, microbatch=size)) for size in (8, 2))
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(parts.metrics[name], whole.metrics[name], rtol=1e-5)


def test_four_updates_in_one_call_give_the_same_weights_as_one_by_one():
    config = dataclasses.replace(CONFIG, dropout=0.1, microbatch=4)
    one, four = (trained(series(), config, steps=6, steps_per_dispatch=n) for n in (1, 4))
    assert [row["step"] for row in four.metrics.to_dicts()] == [3, 6]
    pairs = zip(*(jax.tree.leaves(x.model.network) for x in (one, four)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_microbatch_divides_the_batch():
    with pytest.raises(Error, match=r"^microbatch=3 does not divide batch_size=8$"):
        dataclasses.replace(CONFIG, microbatch=3)


def test_the_loss_falls_on_a_series_with_a_rhythm():
    found = trained(series(), steps=120)
    losses = found.metrics["loss"].to_numpy()
    assert losses[-1] < 0.5 * losses[0]


def test_missing_targets_change_neither_loss_nor_weights():
    """What stands in the cells that are missing is of no consequence."""
    y = series()
    y[:, ::4] = np.nan
    first = store(y)
    held = np.asarray(first.observed.real).copy()
    held[np.asarray(first.observed.missing[..., :1])] = 1e3
    assert float(np.abs(held).max()) == 1e3
    pairs = windows.index(~np.isnan(y), CONFIG)
    entity, origin = (jnp.asarray(x[:8]) for x in pairs)
    sample = windows.gather(first, LAYOUT, CONFIG, entity, origin)
    assert float(np.asarray(sample.weight).min()) == 0
    assert np.asarray(sample.target)[np.asarray(sample.weight) == 0].max(initial=0) == 0
    assert np.isfinite(trained(y).metrics["loss"].to_numpy()).all()


def test_each_member_of_an_ensemble_learns_as_if_it_were_alone():
    """Gradients of the mean over members are scaled back, and clipped member by member."""
    y = series()
    two = trained(y, dataclasses.replace(CONFIG, members=2), steps=120)
    losses = two.metrics["loss"].to_numpy()
    assert losses[-1] < 0.5 * losses[0]
    weights = two.model.network.head.weight
    assert weights.shape[0] == 2 and not np.allclose(weights[0], weights[1])
