"""Models, schedules, mixup and augmentation, each against what it is meant to be."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core import mesh as mesh_of
from chapbook.core import shardings
from chapbook.label_dp import schedules
from chapbook.label_dp.augment import augment
from chapbook.label_dp.mixup import mix, mixing_weight
from chapbook.label_dp.models import (
    MLP,
    Batched,
    BatchNorm,
    ConvNet,
    Logistic,
    Rater,
    ResNet18,
    forward,
    initial_statistics,
)

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "model",
    [
        Logistic(192, 4),
        MLP(192, 4, KEY, (16, 8)),
        ConvNet((8, 8, 3), 4, KEY, (4, 8), 16),
        Batched(eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(192, 4, key=KEY)])),
    ],
    ids=["logistic", "mlp", "convnet", "batched"],
)
def test_a_model_maps_a_batch_to_logits_example_by_example(model):
    assert initial_statistics(model) == ()
    apply = eqx.filter_jit(lambda m, x: forward(m, x, (), train=True)[0])
    logits = apply(model, IMAGES)
    assert logits.shape == (6, 4)
    others = np.concatenate([IMAGES[2:3], np.zeros_like(IMAGES[:5])])
    np.testing.assert_allclose(apply(model, others)[0], logits[2], atol=1e-5)


def test_resnet_18_has_the_published_number_of_parameters():
    shapes = eqx.filter_eval_shape(ResNet18, (32, 32, 3), 10, KEY)
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    # The usual CIFAR ResNet-18 has 11,173,962. The V2 order moves every norm before its
    # convolution: the stem's norm (2 * 64) and those of three projections go, the first norm of
    # three widening blocks has the width of its input, and one norm comes before the head.
    projections = 2 * (128 + 256 + 512)
    narrower = projections - 2 * (64 + 128 + 256)
    assert count == 11_173_962 - 2 * 64 - projections - narrower + 2 * 512


def test_batch_norm_normalises_by_the_batch_and_remembers_it():
    norm = BatchNorm(3)
    x = jnp.asarray(3 + 2 * IMAGES)
    out, (mean, variance) = eqx.filter_jit(norm)(x, norm.statistics(), True)
    np.testing.assert_allclose(np.mean(out, (0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(np.var(out, (0, 1, 2)), 1, atol=1e-3)
    np.testing.assert_allclose(mean, 0.1 * np.mean(x, (0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(variance, 0.9 + 0.1 * np.var(x, (0, 1, 2)), rtol=1e-4)
    given = np.full(3, 3.0, np.float32), np.full(3, 4.0, np.float32)
    seen, after = eqx.filter_jit(norm)(x, given, False)
    np.testing.assert_allclose(seen, (x - 3) / np.sqrt(4 + 1e-5), atol=1e-4)
    np.testing.assert_allclose(after[0], 3.0)


def test_the_rater_scores_pairs_by_their_factors_and_biases():
    rater = Rater(3, 4, 5, KEY, rank=2)
    pairs = jnp.array([[0, 1], [2, 3]])
    product = np.asarray(rater.user_factors)[[0, 2]] * np.asarray(rater.item_factors)[[1, 3]]
    np.testing.assert_allclose(rater(pairs), product @ np.asarray(rater.head.weight), atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MLP(7, 3, KEY, (16,)),
        lambda: Logistic(7, 3),
        lambda: ConvNet((9, 9, 1), 3, KEY, (4, 8), 16),
        lambda: ResNet18((8, 8, 1), 3, KEY, 8),
        lambda: Rater(3, 5, 2, KEY),
    ],
    ids=["mlp", "logistic", "convnet", "resnet18", "rater"],
)
def test_every_weight_is_named_for_a_mesh(make):
    """Odd widths of data and classes must not stand in the way of any mesh."""
    placed = shardings(eqx.filter_eval_shape(make), mesh_of("data=1,model=1"))
    assert jax.tree.leaves(placed)


def test_the_official_schedule_counts_its_decays_from_the_end_of_the_ramp():
    rate, steps = 0.4, 1000
    official, plain = schedules.official(rate, steps), schedules.plain(rate, steps)
    at = np.array([75, 150, 449, 451, 749, 751, 999])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(official))(at),
        [rate / 2, rate, rate, rate / 10, rate / 10, rate / 100, rate / 100],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        jax.jit(jax.vmap(plain))(np.array([150, 299, 301, 599, 601, 899, 901])),
        [rate, rate, rate / 10, rate / 10, rate / 100, rate / 100, rate / 1000],
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", ["official", "plain", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_schedules_of_very_short_stages_are_finite(name, steps):
    schedule = getattr(schedules, name)(0.1, steps)
    values = np.asarray(jax.jit(jax.vmap(schedule))(np.arange(8)))
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    assert values.max() <= 0.1 + 1e-7


def test_mixup_mixes_each_record_with_its_mirror_image():
    values = jnp.arange(8.0).reshape(4, 2)
    np.testing.assert_allclose(mix(values, jnp.asarray(0.75)), 0.75 * values + 0.25 * values[::-1])
    assert float(mixing_weight(KEY, 0.0)) == 1
    draw = jax.jit(jax.vmap(lambda key: mixing_weight(key, 8.0)))
    draws = draw(jax.random.split(KEY, 4000))
    # Beta(8, 8) has mean 1/2 and variance 1 / (4 * 17).
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(draws.var()) == pytest.approx(1 / 68, rel=0.1)


def test_augmentation_moves_flips_and_cuts_but_invents_nothing():
    values = np.arange(1, 257, dtype=np.float32).reshape(1, 16, 16, 1)
    images = np.repeat(values, 200, axis=0)
    out = np.asarray(jax.jit(augment)(KEY, images))
    assert out.shape == images.shape
    assert set(np.unique(out)) <= {0.0, *np.unique(values)}
    steps = np.diff(out[:, 8, :, 0], axis=1)
    assert (steps == 1).any(axis=1).sum() > 50, "unflipped rows ascend"
    assert (steps == -1).any(axis=1).sum() > 50, "flipped rows descend"
    hidden = (out == 0).sum(axis=(1, 2, 3))
    assert hidden.min() >= 16  # a quarter of the square, at a corner
    assert hidden.max() <= 256 - 12 * 12 + 64  # the padding of a crop at a corner, and the square
    np.testing.assert_array_equal(out, jax.jit(augment)(KEY, images))
