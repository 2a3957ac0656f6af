from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from model.training.lungs import activation_in_lungs, between, lung_mask
from tests.unit.model.conftest import chest

RNG = np.random.default_rng(5)


def _ovals(rows: int, columns: int) -> npt.NDArray[np.bool_]:
    y, x = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j]
    inside = [((x - centre) / 0.14) ** 2 + ((y - 0.5) / 0.3) ** 2 < 1.0 for centre in (0.28, 0.72)]
    return np.asarray(inside[0] | inside[1])


@pytest.mark.parametrize("opaque", [False, True])
def test_the_mask_covers_the_lungs_and_neither_spine_nor_border(opaque: bool) -> None:
    for _ in range(3):
        film = chest(RNG, opaque, 192, 160)
        mask = lung_mask(film)
        assert mask.shape == film.shape
        assert mask.dtype == np.bool_
        assert mask[_ovals(*film.shape)].mean() > 0.65
        assert not mask[:, 75:85].any()
        assert not mask[:8].any()
        assert not mask[-8:].any()
        assert not mask[:96, :8].any()
        assert not mask[:96, -8:].any()


def test_the_mask_follows_the_lungs() -> None:
    film = chest(RNG, False, 160, 160)
    moved = np.roll(film, (12, -10), axis=(0, 1))
    before, after = (np.argwhere(lung_mask(each)).mean(axis=0) for each in (film, moved))
    np.testing.assert_allclose(after - before, (12, -10), atol=6)


def test_the_mask_is_the_same_for_another_grey_scale_and_size() -> None:
    film = chest(RNG, True, 256, 256)
    mask = lung_mask(film)
    assert (lung_mask(film * 900.0 - 300.0) == mask).mean() > 0.99
    doubled = lung_mask(np.kron(film, np.ones((2, 3))))
    assert (doubled[::2, ::3] == mask).mean() > 0.98


def test_a_film_without_contrast_gets_the_usual_place_of_the_lungs() -> None:
    mask = lung_mask(np.full((100, 120), 7, np.uint16))
    assert 0.1 < mask.mean() < 0.4
    np.testing.assert_allclose(np.argwhere(mask).mean(axis=0), (46, 57), atol=1)


def test_the_chest_is_the_lungs_and_what_lies_between() -> None:
    lungs = np.zeros((3, 9), np.bool_)
    lungs[1, [2, 6]] = True
    np.testing.assert_array_equal(between(lungs).nonzero(), ([1] * 5, [2, 3, 4, 5, 6]))


def test_activation_counts_by_where_its_mass_lies() -> None:
    lungs = np.zeros((80, 80), np.bool_)
    lungs[:, :20] = True
    inside, outside, below_zero = np.zeros((3, 4, 4), np.float32)
    inside[:, 0] = 1.0
    inside[:, 3] = -5.0
    outside[1, 3] = 2.0
    below_zero[:] = -1.0
    found = activation_in_lungs(np.stack([inside, outside, below_zero]), [lungs] * 3, 50)
    assert found["n"] == 2  # the third has nothing to place
    assert found["area"] == pytest.approx(0.25)
    assert found["peak"] == 0.5
    # Spread edge to edge between cells, a column of cells has three quarters of its mass on itself.
    assert found["mass"] == pytest.approx((0.75 + 0.0) / 2, abs=0.08)
    assert found["area_within_a_tenth"] == pytest.approx(0.35, abs=0.01)
    assert found["mass_within_a_tenth"] == pytest.approx(0.5, abs=0.02)
    assert found["mass_in_chest"] == found["mass"]  # this one has nothing in between
    assert found["mass_ci"][0] <= found["mass"] <= found["mass_ci"][1]


def test_activation_between_the_lungs_is_in_the_chest_but_not_in_the_lungs() -> None:
    lungs = np.zeros((80, 80), np.bool_)
    lungs[:, 10:15] = lungs[:, 65:70] = True
    middle = np.zeros((1, 4, 4), np.float32)
    middle[0, :, 1:3] = 1.0
    found = activation_in_lungs(middle, [lungs], 50)
    assert found["mass"] < 0.1
    assert found["mass_in_chest"] > 0.9
    assert (found["peak"], found["peak_in_chest"]) == (0.0, 1.0)
    assert found["area_in_chest"] == pytest.approx(60 / 80)


def test_without_a_true_positive_there_is_no_share() -> None:
    found = activation_in_lungs(np.zeros((0, 4, 4), np.float32), [], 50)
    assert found["n"] == 0
    assert found["mass"] is None
    assert found["mass_ci"] is None
