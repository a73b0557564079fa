"""Standardisation and whitening."""

import numpy as np
import pytest

from chapbook.core.errors import Error
from chapbook.kip_distill import Preprocess


def images(n=50, seed=0):
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(n, 4, 4, 2)).cumsum(1).cumsum(2)
    return (smooth * [3, 1] + [5, -2]).astype(np.float32)


def test_channels_are_standardised_by_the_training_part():
    train, test = images(), images(20, 1)
    made = Preprocess.fit(train)
    np.testing.assert_allclose(made(train).mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(made(train).std((0, 1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(
        made(test), (test - train.mean((0, 1, 2))) / train.std((0, 1, 2)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(made.view(made(test)), test, rtol=1e-5, atol=1e-5)


def test_a_constant_channel_becomes_zero():
    x = images()
    x[..., 1] = 7
    assert not Preprocess.fit(x)(x)[..., 1].any()


def test_whitening_divides_each_direction_by_its_regularised_spread():
    x = images(500)
    made, plain = Preprocess.fit(x, zca=0.1), Preprocess.fit(x)
    rows = np.asarray(plain(x), np.float64).reshape(500, -1)
    rows -= rows.mean(1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(rows.T @ rows / 500)
    amount = 0.1 * values.mean()
    white = np.asarray(made(x), np.float64).reshape(500, -1)
    found = vectors.T @ (white.T @ white / 500) @ vectors
    np.testing.assert_allclose(found, np.diag(values / (values + amount)), atol=1e-4)


def test_a_whitened_image_can_be_viewed_up_to_its_own_scale():
    x = images(500)
    made = Preprocess.fit(x, zca=0.1)
    seen = made.view(made(x)).reshape(500, -1)
    plain = Preprocess.fit(x)
    back = plain(seen.reshape(x.shape)).reshape(500, -1)
    wanted = plain(x).reshape(500, -1)
    wanted = wanted - wanted.mean(1, keepdims=True)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(back, wanted, atol=1e-3)


def test_fewer_images_than_pixels_leave_the_other_directions_alone():
    x = images(10)
    values = np.linalg.eigvalsh(np.asarray(Preprocess.fit(x, zca=0.1).whiten, np.float64))
    assert (abs(values - 1) < 1e-4).sum() == 32 - 10


def test_values_that_are_not_finite_are_counted_and_placed():
    x = images()
    x[3, 1, 2, 0] = np.nan
    x[4] = np.inf
    with pytest.raises(
        Error, match=r"33 values are not finite; the first is at index \(3, 1, 2, 0\)"
    ):
        Preprocess.fit(x)
