from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gm.data.resize import area_resize
from gm.errors import InputError


def brute_force(x, resolution):
    """Area average of one grey square, by exact fractions, halves rounded up."""
    side = len(x)
    scale = Fraction(side, resolution)
    out = np.empty((resolution, resolution), np.uint8)
    for r in range(resolution):
        for s in range(resolution):
            total = Fraction(0)
            for h in range(side):
                for w in range(side):
                    tall = min((r + 1) * scale, h + 1) - max(r * scale, h)
                    wide = min((s + 1) * scale, w + 1) - max(s * scale, w)
                    total += max(tall, 0) * max(wide, 0) * int(x[h, w])
            out[r, s] = int(total / scale**2 + Fraction(1, 2))
    return out


def random_images(n, height, width, channels, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, height, width, channels), np.uint8)


def test_same_resolution_is_the_identity():
    x = random_images(3, 5, 5, 2)
    np.testing.assert_array_equal(area_resize(x, 5), x)


def test_divisible_resolution_is_the_mean_of_blocks():
    x = random_images(4, 8, 8, 3)
    means = x.reshape(4, 4, 2, 4, 2, 3).astype(float).mean((2, 4))
    np.testing.assert_array_equal(area_resize(x, 4), np.floor(means + 0.5))


def test_constant_images_stay_constant():
    for value in (0, 1, 127, 255):
        x = np.full((1, 9, 9, 1), value, np.uint8)
        assert (area_resize(x, 4) == value).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.data())
def test_equals_exact_fractions(side, data):
    resolution = data.draw(st.integers(1, side))
    x = random_images(1, side, side, 1, seed=data.draw(st.integers(0, 999)))
    expected = brute_force(x[0, ..., 0], resolution)
    np.testing.assert_array_equal(area_resize(x, resolution)[0, ..., 0], expected)


def test_seven_to_three_equals_exact_fractions():
    x = random_images(1, 7, 7, 1, seed=3)
    np.testing.assert_array_equal(
        area_resize(x, 3)[0, ..., 0], brute_force(x[0, ..., 0], 3)
    )


def test_crops_the_centred_square_and_keeps_blocks_apart():
    x = random_images(600, 4, 8, 1)  # more than one block of 512
    np.testing.assert_array_equal(area_resize(x, 2), area_resize(x[:, :, 2:6], 2))


def test_larger_than_the_image_is_an_error():
    with pytest.raises(InputError, match="--resolution=9: .* from 1 to 8"):
        area_resize(random_images(1, 8, 8, 1), 9)
