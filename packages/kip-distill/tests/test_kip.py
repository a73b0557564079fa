"""Distillation: what is trained, what is not, and that it goes on where it stopped."""

import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core import mesh
from chapbook.core.errors import Error
from chapbook.core.run import Run
from chapbook.kip_distill import KIP, KernelRidge, Targets, centred, kernels
from chapbook.kip_distill.kip import vectors


def clusters(n=120, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    centres = np.random.default_rng(7).normal(size=(3, 6))
    return (centres[y] + 0.7 * rng.normal(size=(n, 6))).astype(np.float32), y


@pytest.fixture(scope="module")
def data():
    return clusters()


def test_the_loss_is_half_the_mean_square_of_what_regression_misses(data):
    x, y = data
    kip = KIP(kernels.FC(1), 6, reg=1e-3)
    support = kip.init(x, y, key=jax.random.key(0))
    found, told = kip.loss(support, jnp.asarray(x), jnp.asarray(vectors(y)))
    predicted = KernelRidge.fit(
        kip.kernel, np.asarray(support.images), np.asarray(support.labels), reg=1e-3
    ).predict(x)
    assert float(found) == pytest.approx(0.5 * ((predicted - centred(y, 3)) ** 2).mean(), rel=1e-4)
    assert float(told["accuracy"]) == pytest.approx((predicted.argmax(1) == y).mean())


def test_distillation_learns_and_fixed_labels_stay(data):
    x, y = data
    test = clusters(300, 1)
    for learn in (False, True):
        kip = KIP(kernels.FC(1), 3, learn_labels=learn)
        start = kip.init(x, y, key=jax.random.key(0))
        done = kip.fit(start, x, y, steps=50, evaluate=test, evaluate_every=25, quiet=True)
        assert bool((done.model.labels == start.labels).all()) is not learn
        assert kip.score(done.model, *test)["mse"] < kip.score(start, *test)["mse"]
        losses = done.metrics["loss"].drop_nulls()
        assert losses[-1] < losses[0]
        assert done.metrics["valid/accuracy"].drop_nulls().len() == 2


def test_the_first_support_is_balanced(data):
    x, y = data
    kip = KIP(kernels.FC(1), 6)
    support = kip.init(x, y, key=jax.random.key(0))
    assert np.bincount(np.asarray(support.labels).argmax(1)).tolist() == [2, 2, 2]
    assert all((x == image).all(1).any() for image in np.asarray(support.images))
    noise = kip.init(x, y, key=jax.random.key(0), noise=True)
    assert not any((x == image).all(1).any() for image in np.asarray(noise.images))
    with pytest.raises(Error, match="a support of 7 images cannot hold 3 classes"):
        KIP(kernels.FC(1), 7).init(x, y, key=jax.random.key(0))
    uneven = KIP(kernels.FC(1), 7).init(x, y, key=jax.random.key(0), allow_unbalanced=True)
    assert np.bincount(np.asarray(uneven.labels).argmax(1)).tolist() == [3, 2, 2]
    with pytest.raises(Error, match="class 2 has 1 examples, and 2 are needed"):
        kip.init(x[:9], np.array([0, 0, 0, 0, 1, 1, 1, 1, 2]), key=jax.random.key(0))


def test_targets_are_balanced_and_depend_on_the_step_alone(data):
    x, y = data
    one = Targets(x, vectors(y), 10, classes=y, seed=3)
    rows = [one.rows(step) for step in range(20)]
    counts = np.stack([np.bincount(y[each], minlength=3) for each in rows])
    assert counts.min() == 3
    assert counts.max() == 4
    assert all(len(np.unique(each)) == 10 for each in rows)
    assert len({tuple(each) for each in rows}) == 20
    for _ in range(5):
        next(one)
    other = Targets(x, vectors(y), 10, classes=y, seed=3)
    other.set_state(one.get_state())
    np.testing.assert_array_equal(next(one)["x"], next(other)["x"])
    with pytest.raises(Error, match="seed=3, not 4"):
        Targets(x, vectors(y), 10, classes=y, seed=4).set_state(one.get_state())
    with pytest.raises(Error, match="2 targets cannot hold 3 classes"):
        Targets(x, vectors(y), 2, classes=y)


def test_a_class_with_too_few_examples_gives_all_of_them():
    y = np.array([0] * 50 + [1] * 2)
    rows = Targets(np.zeros((52, 1), np.float32), vectors(y), 20, classes=y).rows(0)
    assert len(np.unique(rows)) == 20
    assert np.bincount(y[rows]).tolist() == [18, 2]


def test_sets_are_told_at_the_steps_of_the_released_ones(data):
    x, y = data
    kip = KIP(kernels.FC(1), 3)
    seen = {}
    kip.fit(
        kip.init(x, y, key=jax.random.key(0)), x, y, steps=20, quiet=True,
        on_step=lambda step, support: seen.update({step: support}),
    )  # fmt: skip
    assert list(seen) == [0, 1, 2, 4, 6, 8, 12, 18]
    assert bool((seen[0].images != seen[1].images).any())


@pytest.mark.devices(8)
def test_any_number_of_devices_trains_alike(data):
    x, y = data
    kip = KIP(kernels.FC(1), 6, learn_labels=True, target_batch=60)
    start = kip.init(x, y, key=jax.random.key(0))

    def trained(axes, count):
        devices = mesh(axes, devices=jax.devices()[:count])
        return kip.fit(start, x, y, steps=5, mesh=devices, quiet=True).model

    alone = trained("target=1", 1)
    for axes, count in (("target=2", 2), ("target=4", 4), ("target=2,support=2", 4)):
        found = trained(axes, count)
        np.testing.assert_allclose(found.images, alone.images, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.labels, alone.labels, rtol=1e-4, atol=1e-5)


CHILD = """
import sys, numpy as np, jax
from chapbook.core.run import Run
from chapbook.kip_distill import KIP, kernels
rng = np.random.default_rng(0)
y = np.arange(120) % 3
x = (np.random.default_rng(7).normal(size=(3, 6))[y] + 0.7 * rng.normal(size=(120, 6)))
x = x.astype(np.float32)
kip = KIP(kernels.FC(1), 6, learn_labels=True, target_batch=60)
with Run(sys.argv[1], {"test": 1}) as run:
    done = kip.fit(kip.init(x, y, key=jax.random.key(0)), x, y, steps=600, run=run, save_every=20,
                   quiet=True)
np.savez(sys.argv[1] + ".npz", images=done.model.images, labels=done.model.labels)
"""


def test_a_killed_run_ends_as_an_unbroken_one(tmp_path):
    def begin(name):
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / name)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    assert begin("whole").wait() == 0
    broken = begin("broken")
    checkpoints = tmp_path / "broken" / "checkpoints"
    until = time.monotonic() + 120
    while not any(checkpoints.glob("[0-9]*")) and time.monotonic() < until:
        assert broken.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    broken.send_signal(signal.SIGKILL)
    assert broken.wait() == -signal.SIGKILL
    assert begin("broken").wait() == 0
    whole, found = (np.load(tmp_path / f"{name}.npz") for name in ("whole", "broken"))
    for name in ("images", "labels"):
        np.testing.assert_array_equal(found[name], whole[name])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_set(data, tmp_path):
    x, y = data
    kip = KIP(kernels.FC(1), 3, lr=1e25)
    with Run(tmp_path / "run", {}) as run:
        done = kip.fit(kip.init(x, y, key=jax.random.key(0)), x, y, steps=10, run=run, quiet=True)
    assert done.reason == "nan"
    assert np.isfinite(done.model.images).all()


@pytest.mark.devices(8)
def test_images_are_distilled_with_the_variances_of_targets_kept():
    rng = np.random.default_rng(0)
    y = np.arange(24) % 2
    x = rng.normal(size=(24, 6, 6, 1)).astype(np.float32) + y[:, None, None, None]
    kip = KIP(kernels.ConvNet(1), 2)
    start = kip.init(x, y, key=jax.random.key(0))
    wanted, _ = jax.jit(kip.loss)(start, jnp.asarray(x), jnp.asarray(vectors(y)))
    for devices in (None, mesh("target=4,support=2")):
        done = kip.fit(start, x, y, steps=3, mesh=devices, quiet=True)
        losses = done.metrics["loss"].to_list()
        assert losses[0] == pytest.approx(float(wanted), rel=1e-5)
        assert losses[-1] < losses[0]


def test_a_number_can_be_regressed(data):
    x, _ = data
    y = np.stack([x[:, 0] - x[:, 1]], 1)
    kip = KIP(kernels.FC(1), 10)
    start = kip.init(x, y, key=jax.random.key(0))
    done = kip.fit(start, x, y, steps=50, quiet=True)
    assert kip.score(done.model, x, y)["mse"] < kip.score(start, x, y)["mse"]
