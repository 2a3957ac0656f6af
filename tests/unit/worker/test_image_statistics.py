"""Statistics of a film's grey values, against their formulas."""

import numpy as np
import pytest
from scipy.stats import entropy

from worker.image_statistics import image_statistics


def test_statistics_are_those_of_all_pixels() -> None:
    rng = np.random.default_rng(1)
    film = np.clip(rng.normal(30000, 9000, (1024, 840)), 0, 65535).astype(np.uint16)
    grey = film / 65535
    counts = np.bincount((film >> 8).ravel(), minlength=256)
    found = image_statistics(film)
    assert found.mean == pytest.approx(grey.mean(), abs=0.003)
    assert found.deviation == pytest.approx(grey.std(), abs=0.003)
    assert found.entropy == pytest.approx(entropy(counts, base=2) / 8, abs=0.003)
    assert found.clipped < 0.002


def test_a_film_of_one_grey_has_neither_contrast_nor_entropy() -> None:
    found = image_statistics(np.full((5, 7), 40000, np.uint16))
    assert (found.deviation, found.entropy, found.clipped) == (0.0, 0.0, 0.0)
    assert found.mean == pytest.approx(40000 / 65535, abs=0.003)


@pytest.mark.parametrize("limit", [0, 65535])
def test_pixels_at_either_limit_are_clipped(limit: int) -> None:
    film = np.full((64, 64), 30000, np.uint16)
    film[:, :16] = limit
    assert image_statistics(film).clipped == 0.25


def test_every_value_lies_between_none_and_all() -> None:
    noise = np.random.default_rng(2).integers(0, 65536, (800, 800)).astype(np.uint16)
    for film in (noise, noise[:1, :1], np.zeros((3, 3), np.uint16), (noise > 30000) * np.uint16(65535)):
        assert all(0.0 <= value <= 1.0 for value in vars(image_statistics(film)).values())
