"""Random changes of images do what they say, to as many images as they say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core.errors import Error
from chapbook.kip_distill import Augmentation

KEY = jax.random.key(0)
STILL: dict[str, Any] = {"rotation": 0.0, "shift": 0.0, "channel_shift": 0.0}


def ramps(n, size=20):
    """Images of two channels: the row and the column of every pixel."""
    one = np.moveaxis(np.mgrid[:size, :size], 0, -1).astype(np.float32)
    return jnp.asarray(np.stack([one] * n))


def test_only_the_share_is_changed_and_without_changes_none():
    x = ramps(40)
    np.testing.assert_allclose(Augmentation(**STILL)(x, KEY), x, atol=1e-4)
    found = Augmentation(0.3)(x, KEY)
    changed = (np.asarray(found != x)).any((1, 2, 3))
    assert changed.sum() == 12
    np.testing.assert_array_equal(Augmentation(0.3)(x, KEY), found)
    assert (Augmentation(0.3)(x, jax.random.key(1)) != found).any()
    assert len(np.unique(np.asarray(found)[changed], axis=0)) == 12  # each by its own numbers


def test_images_are_turned_by_no_more_than_the_greatest_angle():
    found = np.asarray(Augmentation(rotation=30.0, shift=0.0, channel_shift=0.0)(ramps(200), KEY))
    inner = found[:, 6:14, 6:14]  # away from the border, a ramp stays a ramp
    down, across = (np.diff(inner[..., 0], axis=axis)[:, :7, :7] for axis in (1, 2))
    angles = np.rad2deg(np.arctan2(across, down)).mean((1, 2))
    np.testing.assert_allclose(np.hypot(down, across), 1, atol=1e-3)
    np.testing.assert_allclose(found[:, 9:11, 9:11].mean((1, 2)), 9.5, atol=1e-3)  # the middle
    assert 25 < angles.max() < 30.01
    assert -30.01 < angles.min() < -25


def test_images_are_shifted_by_no_more_than_a_share_of_their_size():
    found = np.asarray(Augmentation(rotation=0.0, shift=0.2, channel_shift=0.0)(ramps(200), KEY))
    moved = ramps(1)[0, 10, 10] - found[:, 10, 10]
    assert 3.5 < abs(moved).max() < 4.001
    np.testing.assert_allclose(moved, ramps(1)[0, 8, 9] - found[:, 8, 9], atol=1e-3)
    assert found.min() == pytest.approx(
        0, abs=1e-3
    )  # beyond the border there is the border's pixel
    assert found.max() == pytest.approx(19, abs=1e-3)
    assert abs(np.corrcoef(np.asarray(moved).T)[0, 1]) < 0.2


def test_channels_are_tinted_apart_and_half_of_the_images_mirrored():
    x = ramps(200)
    tints = np.asarray(Augmentation(rotation=0.0, shift=0.0, channel_shift=0.5)(x, KEY) - x)
    assert np.ptp(tints, axis=(1, 2)).max() < 1e-4
    assert 0.45 < abs(tints).max() < 0.501
    assert abs(tints[:, 0, 0, 0] - tints[:, 0, 0, 1]).max() > 0.3
    found = np.asarray(Augmentation(flip=True, **STILL)(x, KEY))
    mirrored = np.array([np.allclose(each, x[0, :, ::-1], atol=1e-4) for each in found])
    same = np.array([np.allclose(each, x[0], atol=1e-4) for each in found])
    assert (mirrored ^ same).all()
    assert 70 < mirrored.sum() < 130


def test_settings_out_of_range_are_refused():
    with pytest.raises(Error, match="cannot be augmented; use 0 to 1"):
        Augmentation(1.5)
    with pytest.raises(Error, match="not negative"):
        Augmentation(shift=-0.1)
