"""DeLong's areas and covariance against their definition and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from service.commands.compare import Film, compare, delong


def scores(seed: int, m: int = 40, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Two models' scores of the same films, with ties."""
    chance = np.random.default_rng(seed)
    positives, negatives = chance.normal(1, 1, (2, m)), chance.normal(0, 1, (2, n))
    positives[1], negatives[1] = positives.mean(axis=0), negatives.mean(axis=0)
    return np.round(positives, 1), np.round(negatives, 1)


def test_areas_are_those_of_scikit_learn_and_covariance_is_delongs() -> None:
    positives, negatives = scores(1)
    areas, covariance = delong(positives, negatives)
    labels = [1] * 40 + [0] * 60
    for place in (0, 1):
        expected = roc_auc_score(labels, [*positives[place], *negatives[place]])
        assert areas[place] == pytest.approx(expected)
    # By its definition: psi is 1, 1/2 or 0 for each pair.
    psi = (np.sign(positives[:, :, None] - negatives[:, None, :]) + 1) / 2
    expected = np.cov(psi.mean(axis=2)) / 40 + np.cov(psi.mean(axis=1)) / 60
    assert covariance == pytest.approx(expected)


def test_the_interval_of_a_difference_is_right_as_often_as_it_says() -> None:
    held, runs = 0, 300
    for seed in range(runs):
        chance = np.random.default_rng(seed)
        positives, negatives = chance.normal(1, 1, (2, 40)), chance.normal(0, 1, (2, 60))
        areas, covariance = delong(positives, negatives)
        error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        held += abs(areas[1] - areas[0]) < 1.96 * error
    assert 0.92 <= held / runs <= 0.98


def test_nothing_to_compare_is_no_error() -> None:
    found = compare([])
    assert (found.films, found.kappa, found.mcnemar_p, found.areas) == (0, None, None, None)
    same = compare([Film("1", "1.1", "present", "present", 0.9, 0.9, True)] * 3)
    assert (same.mcnemar_p, same.areas, list(same.disagreements)) == (None, None, [])
