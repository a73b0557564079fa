"""Rows in few shapes: none is lost, none is cut, and rare shapes are padded to the next."""

import numpy as np

from chapbook.glam.batching import bucket, by_shape


def test_a_bucket_holds_its_lengths_and_is_at_most_half_as_large_again():
    for length in range(5, 3000):
        assert length <= bucket(length) <= 1.5 * length
    assert bucket(1) == 4 and bucket(700, 720) == 720


def test_what_fills_no_batch_goes_into_the_next_larger_shape():
    shapes = [(4, 0)] * 3 + [(4, 8)] + [(6, 4)] * 2 + [(8, 4)] * 4 + [(12, 0)]
    found = by_shape(shapes, lambda _, of: len(of) >= 4)
    # Of (4, 0) there are three and with (4, 8) four; of (6, 4) two and with (8, 4) six.
    assert found == [((12, 0), [10]), ((8, 4), [4, 5, 6, 7, 8, 9]), ((4, 8), [0, 1, 2, 3])]
    assert by_shape(shapes, lambda _, of: len(of) >= 100) == [((12, 8), list(range(11)))]
    assert [shape for shape, _ in by_shape(shapes, lambda _, of: True)] == sorted(set(shapes))[::-1]


def test_every_place_is_in_one_shape_that_holds_it():
    draw = np.random.default_rng(0)
    shapes = [tuple(map(int, row)) for row in draw.integers(1, 40, (500, 2))]
    found = by_shape(shapes, lambda shape, of: len(of) >= 400 // sum(shape))
    assert sorted(place for _, places in found for place in places) == list(range(500))
    for shape, places in found[1:]:
        assert len(places) >= 400 // sum(shape)
    for shape, places in found:
        assert all(a <= b for place in places for a, b in zip(shapes[place], shape, strict=True))
