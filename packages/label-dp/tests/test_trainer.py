"""The trainer protocol and its adapters."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from chapbook.core.errors import Error
from chapbook.label_dp.entropy import Entropy
from chapbook.label_dp.models import MLP, Block, Head, Logistic, Rater, forward
from chapbook.label_dp.randomized_response import RandomizedResponse
from chapbook.label_dp.trainer import (
    ModelTrainer,
    SklearnTrainer,
    Trainer,
    Training,
    predict_proba,
    stage_loss,
)

KEY = jax.random.key(3)


def _blobs(rows=240, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows)
    x = rng.normal(size=(rows, 4)) + 3 * np.eye(3, 4)[y]
    return x.astype(np.float32), y.astype(np.int32)


class _Normed(eqx.Module):
    """One residual block and a head: the least model with batch statistics."""

    block: Block
    head: Head

    def statistics(self):
        return self.block.statistics()

    def __call__(self, x, statistics, train):
        x, statistics = self.block(x, statistics, train)
        return self.head(jnp.mean(x, axis=(1, 2))), statistics


def test_both_adapters_meet_the_protocol_and_learn():
    x, y = _blobs()
    training = Training(epochs=8, batch_size=48, learning_rate=0.3)
    trainers = [
        ModelTrainer(Logistic(4, 3), training, key=KEY),
        SklearnTrainer(LogisticRegression(), 3),
    ]
    for trainer in trainers:
        assert isinstance(trainer, Trainer)
        trainer.fit(x, np.eye(3, dtype=np.float32)[y], np.ones(len(y), np.float32))
        found = trainer.predict_proba(x)
        assert found.shape == (len(x), 3)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-9)
        assert (found.argmax(axis=1) == y).mean() > 0.9


def test_scikit_learn_sees_soft_labels_as_weighted_copies():
    x, y = _blobs(60)
    soft = 0.8 * np.eye(3)[y] + 0.2 / 3
    ours = SklearnTrainer(LogisticRegression(), 3).fit(x, soft, np.ones(60)).predict_proba(x)
    copies, labels = np.repeat(x, 3, axis=0), np.tile(np.arange(3), 60)
    theirs = LogisticRegression().fit(copies, labels, sample_weight=soft.ravel())
    np.testing.assert_allclose(ours, theirs.predict_proba(x), atol=1e-4)


def test_a_class_that_no_noisy_label_has_gets_probability_zero():
    x, y = _blobs()
    present = y < 2
    trainer = SklearnTrainer(LogisticRegression(), 3)
    trainer.fit(x[present], np.eye(3)[y[present]])
    assert (trainer.predict_proba(x)[:, 2] == 0).all()


def test_weight_decay_is_the_gradient_of_the_penalty():
    x, y = _blobs(48)
    training = Training(
        steps=1, batch_size=48, learning_rate=0.5, schedule="constant", weight_decay=0.1,
        nesterov=False, momentum=0.0,
    )  # fmt: skip
    model = MLP(4, 3, KEY, (5,))
    trained = ModelTrainer(model, training, key=KEY).fit(x, np.eye(3)[y]).model

    def objective(m):
        losses = -jax.nn.log_softmax(m(jnp.asarray(x)))[jnp.arange(48), y]
        leaves = jax.tree.leaves(eqx.filter(m, eqx.is_inexact_array))
        return losses.mean() + 0.5 * 0.1 * sum(jnp.sum(leaf**2) for leaf in leaves)

    gradient = eqx.filter_jit(eqx.filter_grad(objective))(model)
    for old, slope, new in zip(*map(jax.tree.leaves, (model, gradient, trained)), strict=True):
        np.testing.assert_allclose(new, old - 0.5 * slope, atol=1e-5)


def test_records_of_weight_zero_do_not_exist():
    x, y = _blobs(96)
    weights = (np.arange(96) % 2).astype(np.float32)
    training = Training(epochs=2, batch_size=48)
    targets = np.eye(3, dtype=np.float32)[y]
    masked = ModelTrainer(Logistic(4, 3), training, key=KEY).fit(x, targets, weights)
    kept = weights > 0
    alone = ModelTrainer(Logistic(4, 3), training, key=KEY)
    alone.fit(x[kept], targets[kept], weights[kept])
    np.testing.assert_array_equal(masked.model.weight, alone.model.weight)
    with pytest.raises(Error, match="no record is left"):
        alone.fit(x, targets, np.zeros(96))


@pytest.mark.parametrize("loss", ["plain", "forward", "backward"])
def test_mixed_labels_are_mixed_losses(loss):
    """Mixup's loss on a batch is lambda times one side's plus 1 - lambda times the other's."""
    x, y = _blobs(8)
    keep = np.linspace(0.6, 0.9, 8).astype(np.float32)
    support = np.ones((8, 3), bool)
    support[::2, 0] = False
    noisy = np.where(support[np.arange(8), y], y, 1)
    targets = np.eye(3, dtype=np.float32)[noisy]
    batch = {"x": x, "targets": targets, "keep": keep, "support": support}
    model = Logistic(4, 3)
    model = eqx.tree_at(lambda m: m.weight, model, x[:4, :3])
    mixed, aux = eqx.filter_jit(stage_loss(Training(loss=loss), 2.0))(model, batch, KEY, ())
    share = float(jax.random.beta(jax.random.split(KEY)[0], 2.0, 2.0))
    blended = share * x + (1 - share) * x[::-1]
    single = eqx.filter_jit(stage_loss(Training(loss=loss), 0.0))
    own, _ = single(model, {**batch, "x": blended}, KEY, ())
    mirrored = {name: value[::-1] for name, value in batch.items()}
    other, _ = single(model, {**mirrored, "x": blended}, KEY, ())
    assert float(mixed) == pytest.approx(share * float(own) + (1 - share) * float(other), rel=1e-4)
    assert float(aux["weight"]) == pytest.approx(8)


def test_batch_statistics_are_carried_but_not_trained():
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 1.0, (16, 4, 4, 1)).astype(np.float32)
    model = _Normed(Block(1, 2, 1, KEY), Head(2, 2))
    training = Training(steps=2, batch_size=8, learning_rate=0.01)
    trainer = ModelTrainer(model, training, key=KEY).fit(x, np.eye(2)[rng.integers(0, 2, 16)])
    before, after = model.statistics(), trainer.statistics
    np.testing.assert_allclose(after[0][0], 0.9 * 0.9 * before[0][0] + (1 - 0.81) * 2, atol=0.3)
    direct, _ = forward(trainer.model, jnp.asarray(x), after, train=False)
    powers = np.exp(np.asarray(direct, np.float64))
    powers /= powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(trainer.predict_proba(x), powers, atol=1e-5)


def test_prediction_does_not_depend_on_the_blocks():
    x, _ = _blobs(37)
    model = MLP(4, 3, KEY, (5,))
    model = eqx.tree_at(lambda m: m.head.weight, model, jax.random.normal(KEY, (5, 3)))
    whole, blocks = predict_proba(model, (), x), predict_proba(model, (), x, batch=8)
    np.testing.assert_allclose(whole, blocks, atol=1e-6)


def test_early_stopping_sees_noisy_labels_only():
    x, y = _blobs(400)
    private = RandomizedResponse(3, 3.0).privatize(y[:100], entropy=Entropy(0))
    training = Training(epochs=30, batch_size=100, patience=2, learning_rate=0.5)
    trainer = ModelTrainer(Logistic(4, 3), training, key=KEY, validation=(x[:100], private))
    trainer.fit(x[100:], np.eye(3)[y[100:]])
    result = trainer.result
    assert result is not None
    assert result.reason == "early stop"
    best = result.metrics["valid/debiased_accuracy"].max()
    hits = (trainer.predict_proba(x[:100]).argmax(axis=1) == private.labels).mean()
    keep = private.keep_probability[0]
    swap = (1 - keep) / 2
    assert best == pytest.approx((hits - swap) / (keep - swap), abs=1e-6)


def test_training_that_diverges_says_so():
    x, y = _blobs(64)
    training = Training(steps=5, batch_size=32)
    x[:] = np.float32(3e38)
    with pytest.raises(Error, match="not finite"):
        ModelTrainer(MLP(4, 3, KEY, (5,)), training, key=KEY).fit(x, np.eye(3)[y])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "other"}, 'loss="other" is none of plain, forward, backward'),
        ({"epochs": 0}, "epochs=0 is not positive"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is not positive"),
        ({"schedule": "step"}, 'schedule="step" is none of'),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(Error, match=message):
        Training(**change)


def test_integer_inputs_are_not_mixed():
    trainer = ModelTrainer(Rater(2, 2, 3, KEY), key=KEY, mixup=8.0)
    with pytest.raises(Error, match="mixup=0"):
        trainer.fit(np.zeros((4, 2), np.int32), np.eye(3)[[0, 1, 2, 0]])


def test_corrected_losses_need_the_mechanism():
    trainer = ModelTrainer(Logistic(4, 3), Training(loss="forward"), key=KEY)
    with pytest.raises(Error, match="needs keep and support"):
        trainer.fit(*_blobs(8)[:1], np.eye(3)[[0] * 8])
