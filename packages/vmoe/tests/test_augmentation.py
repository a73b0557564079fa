"""Random changes of images do what they say, within their bounds, and again for the same seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from chapbook.core.data import Batches, arrays
from chapbook.core.errors import Error
from chapbook.vmoe.augmentation import (
    OPERATIONS,
    CentralCrop,
    HorizontalFlip,
    InceptionCrop,
    RandAugment,
    RandomShift,
    augment,
    mixup,
)

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
# The column in red, the row in green: pixels tell where they come from.
PLACES = np.stack([*np.mgrid[:40, :56][::-1], np.zeros((40, 56))], -1).astype(np.uint8)


def changed(name, image=PHOTO, magnitude=10.0, seed=0):
    generator = np.random.default_rng(seed)
    return np.asarray(OPERATIONS[name](Image.fromarray(image), magnitude / 10, generator))


def test_the_central_crop_is_the_middle_square():
    np.testing.assert_array_equal(CentralCrop(40)(PHOTO), PHOTO[:, 8:48])
    square = PHOTO[:, 8:48]
    assert CentralCrop(40)(square) is square
    # The protocol of resizing the shorter side to 256 and cutting out 224.
    found = CentralCrop(35, zoom=40 / 35)(PLACES).astype(int)
    np.testing.assert_allclose(found[0, :, 0], np.arange(10.5, 45.5), atol=1)


def test_an_inception_crop_covers_a_share_of_the_image():
    generator = np.random.default_rng(0)
    shares, ratios = [], []
    for _ in range(500):
        found = InceptionCrop(16, least=0.2)(PLACES, generator).astype(float)
        # Beyond the middles of the outer pixels there is half a pixel of the crop on either side.
        width, height = (np.ptp(found[..., each]) * 16 / 15 for each in (0, 1))
        shares.append(width * height / (40 * 56))
        ratios.append(width / height)
    assert 0.17 < min(shares) < 0.25
    assert 0.8 < max(shares) < 1.01
    assert 0.45 < np.mean(shares) < 0.65  # tall and wide crops of all the area do not fit
    assert min(ratios) > 0.7 and max(ratios) < 1.45


def test_an_inception_crop_of_a_narrow_image_falls_back_to_its_middle():
    wide = np.repeat(PLACES[:8], 8, axis=1)  # 8 x 448: no crop of most of the area fits
    found = InceptionCrop(8, least=0.9)(wide, np.random.default_rng(0))
    np.testing.assert_array_equal(found, wide[:, 220:228])


def test_half_of_the_images_are_mirrored():
    generator = np.random.default_rng(0)
    found = [HorizontalFlip()(PHOTO, generator) for _ in range(200)]
    mirrored = [np.array_equal(each, PHOTO[:, ::-1]) for each in found]
    assert all(m or np.array_equal(each, PHOTO) for m, each in zip(mirrored, found, strict=True))
    assert 70 < sum(mirrored) < 130


def test_shifts_are_whole_pixels_up_to_the_greatest_either_way():
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        found = RandomShift(2)(PLACES, generator)
        assert found.shape == PLACES.shape
        left, top = found[20, 30, :2].astype(int) - (30, 20)
        rows = np.clip(np.arange(40) + top, 0, 39)
        columns = np.clip(np.arange(56) + left, 0, 55)
        np.testing.assert_array_equal(found, PLACES[rows][:, columns])
        seen.add((int(left), int(top)))
    assert seen == {(x, y) for x in range(-2, 3) for y in range(-2, 3)}


def test_changes_of_single_pixels_are_those_of_their_formulas():
    x = PHOTO.astype(int)
    np.testing.assert_array_equal(changed("Invert"), 255 - x)
    np.testing.assert_array_equal(changed("Posterize"), x & 0xF0)
    np.testing.assert_array_equal(changed("Posterize", magnitude=15), x & 0xFC)
    np.testing.assert_array_equal(changed("Solarize", magnitude=5), np.where(x < 128, x, 255 - x))
    np.testing.assert_array_equal(changed("Solarize"), x)  # at magnitude 10 none is bright enough
    np.testing.assert_array_equal(
        changed("SolarizeAdd"), np.where(x < 128, np.minimum(x + 110, 255), x)
    )


@pytest.mark.parametrize("magnitude", [2, 5, 10])
def test_enhancements_blend_with_an_image_that_lacks_the_property(magnitude):
    x, factor = PHOTO.astype(float), 0.1 + 0.18 * magnitude
    grey = (x @ [0.299, 0.587, 0.114]).round()[..., None]
    lacking = {"Brightness": 0 * x, "Color": grey, "Contrast": np.full_like(x, grey.mean().round())}
    for name, without in lacking.items():
        expected = (without + factor * (x - without)).clip(0, 255)
        np.testing.assert_allclose(changed(name, magnitude=magnitude), expected, atol=2.01)


def test_sharpness_blends_with_the_smoothed_inside():
    x = PHOTO.astype(float)
    shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    around = sum(np.roll(x, shift, (0, 1)) for shift in shifts)
    smooth = ((around + 4 * x) / 13)[1:-1, 1:-1]
    expected = (smooth + 1.9 * (x[1:-1, 1:-1] - smooth)).clip(0, 255)
    np.testing.assert_allclose(changed("Sharpness")[1:-1, 1:-1], expected, atol=2.01)


def test_contrast_is_stretched_and_levels_are_evened():
    dull = (PHOTO // 4 + 60).astype(np.uint8)
    found = changed("AutoContrast", dull)
    assert (found.min((0, 1)) == 0).all() and (found.max((0, 1)) == 255).all()
    for channel in range(3):
        counts = np.bincount(dull[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        table = ((counts.cumsum() - counts + step // 2) // step).clip(0, 255)
        found = changed("Equalize", dull)[..., channel]
        np.testing.assert_array_equal(found, table[dull[..., channel]])


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("TranslateX", lambda x, y: (x + 100 / 224 * 56, y)),
        ("TranslateY", lambda x, y: (x, y + 100 / 224 * 40)),
        ("ShearX", lambda x, y: (x + 0.3 * y, y)),
        ("ShearY", lambda x, y: (x, y + 0.3 * x)),
    ],
)
def test_images_are_moved_either_way_and_grey_beyond_the_border(name, moved):
    seen = set()
    for seed in range(20):
        found = changed(name, PLACES, seed=seed).astype(int)
        inside = found[..., 2] == 0
        assert (found[~inside] == 128).all()
        y, x = np.nonzero(inside)
        there = moved(x, y)
        back = (2 * x - there[0], 2 * y - there[1])
        errors = [
            max(np.abs(found[y, x, 0] - u).max(), np.abs(found[y, x, 1] - v).max())
            for u, v in (there, back)
        ]
        assert min(errors) <= 1.01
        seen.add(int(np.argmin(errors)))
    assert seen == {0, 1}


def test_images_are_rotated_by_up_to_thirty_degrees():
    found = changed("Rotate", PLACES).astype(int)
    across = found[20, 33, :2] - found[20, 23, :2]
    assert np.hypot(*across) == pytest.approx(10, abs=1.5)
    assert abs(np.rad2deg(np.arctan2(across[1], across[0]))) == pytest.approx(30, abs=5)


def test_a_square_is_cut_out():
    sizes = []
    for seed in range(40):
        cut = (changed("Cutout", PLACES, seed=seed) == 128).all(-1)
        rows, columns = np.nonzero(cut)
        assert cut.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        sizes.append(cut.sum())
    assert max(sizes) == (2 * int(40 / 224 * 40)) ** 2


def test_randaugment_draws_all_operations_and_resumes():
    seen = set()
    single = {name: changed(name, seed=0).tobytes() for name in ("Invert", "Posterize", "Equalize")}
    operation = RandAugment(1, 10)
    for seed in range(200):
        found = operation(PHOTO, np.random.default_rng(seed))
        assert found.shape == PHOTO.shape and found.dtype == np.uint8
        seen |= {name for name, each in single.items() if found.tobytes() == each}
        np.testing.assert_array_equal(found, operation(PHOTO, np.random.default_rng(seed)))
    assert seen == set(single)
    assert len(OPERATIONS) == 16
    np.testing.assert_array_equal(RandAugment(0)(PHOTO, np.random.default_rng(0)), PHOTO)


@pytest.mark.parametrize("magnitude", [0, 1, 20, 30])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_hold_at_the_ends_of_the_magnitudes(name, magnitude):
    for image in (PHOTO, PHOTO[:1, :1]):
        assert changed(name, image, magnitude).shape == image.shape


def test_a_resumed_walk_augments_as_one_that_was_never_stopped():
    source = arrays(image=np.stack([PHOTO] * 12), label=np.arange(12))
    operations = augment(InceptionCrop(16), HorizontalFlip(), RandAugment(), RandomShift(1))

    def batches(workers):
        return Batches(source, 4, seed=1, epochs=2, map=operations, workers=workers)

    whole = list(batches(0))
    first, second = batches(2), batches(2)
    for _ in range(2):
        next(first)
    second.set_state(first.get_state())
    for found, expected in zip(second, whole[2:], strict=True):
        np.testing.assert_array_equal(found["image"], expected["image"])
        np.testing.assert_array_equal(found["label"], expected["label"])
    again = {image.tobytes() for batch in whole for image in batch["image"]}
    assert len(again) == 24  # each epoch augments anew


def test_mixup_mixes_neighbours_and_keeps_the_larger_share():
    key = jax.random.key(0)
    images = jax.random.uniform(key, (5, 4, 4, 3))
    targets = jnp.eye(5)
    mixed = jax.jit(lambda x, y, key: mixup(x, y, 0.5, key=key))
    shares = []
    for each in jax.random.split(key, 40):
        x, y = mixed(images, targets, each)
        share = float(y[0, 0])
        shares.append(share)
        assert share >= 0.5
        np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-6)
        expected = share * np.asarray(images) + (1 - share) * np.roll(images, -1, 0)
        np.testing.assert_allclose(x, expected, atol=1e-6)
        np.testing.assert_allclose(y, share * np.eye(5) + (1 - share) * np.roll(np.eye(5), -1, 0))
    assert len(set(shares)) > 30


@pytest.mark.parametrize("concentration", [0.05, 0.2, 0.5, 1.0, 3.0])
def test_shares_of_mixup_follow_the_beta_distribution(concentration):
    pair = jnp.eye(2)
    keys = jax.random.split(jax.random.key(1), 4000)
    shares = jax.vmap(lambda key: mixup(pair, pair, concentration, key=key)[1][0, 0])(keys)
    assert np.isfinite(shares).all()
    # The folded distribution: P(max(b, 1 - b) <= a) = 2 P(b <= a) - 1.
    folded = lambda a: 2 * scipy.stats.beta.cdf(a, concentration, concentration) - 1  # noqa: E731
    # In float32 many shares of a small concentration are 1, where the distribution is steep.
    inside = np.linspace(0.5, 0.999, 50)
    found = np.searchsorted(np.sort(shares), inside) / len(shares)
    np.testing.assert_allclose(found, folded(inside), atol=0.03)


def test_settings_out_of_range_are_refused():
    for wrong in (
        lambda: CentralCrop(0),
        lambda: CentralCrop(8, zoom=0.5),
        lambda: InceptionCrop(8, least=0.0),
        lambda: RandomShift(-1),
        lambda: RandAugment(2, 31),
        lambda: mixup(jnp.ones((2, 1)), jnp.ones((2, 1)), 0.0, key=jax.random.key(0)),
    ):
        with pytest.raises(Error):
            wrong()
