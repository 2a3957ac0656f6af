from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from model.measuring import metrics


def drawn(n: int, seed: int = 2) -> tuple[metrics.Values, metrics.Values]:
    """Probabilities, rounded so that there are ties, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    probability = np.round(np.clip(0.5 + (labels - 0.5) * 0.3 + rng.normal(0, 0.2, n), 0, 1), 2)
    return probability, labels


def test_auc_and_brier_agree_with_scikit_learn() -> None:
    probability, labels = drawn(300)
    assert metrics.auc(probability, labels) == pytest.approx(roc_auc_score(labels, probability))
    found = metrics.figures(probability, labels, 0.5)
    assert found["auc"] == pytest.approx(roc_auc_score(labels, probability))
    assert found["brier"] == pytest.approx(brier_score_loss(labels, probability))


def test_figures_of_a_small_case_are_those_done_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    probability = np.array([0.1, 0.3, 0.8, 0.6, 0.9])
    found = metrics.figures(probability, labels, 0.6)
    assert metrics.confusion(probability >= 0.6, labels) == {"tn": 2, "fp": 1, "fn": 0, "tp": 2}
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(0.8)
    assert found["balanced_accuracy"] == pytest.approx(5 / 6)
    # Bins of a tenth, one film each: |0.1 - 0| + |0.3 - 0| + |0.8 - 0| + |0.6 - 1| + |0.9 - 1|, over five.
    assert found["ece"] == pytest.approx(1.7 / 5)


def test_predictive_values_follow_bayes() -> None:
    rows = {row["prevalence"]: row for row in metrics.predictive_values(0.9, 0.8)}
    assert rows[0.5]["ppv"] == pytest.approx(0.45 / 0.55)
    assert rows[0.05]["npv"] == pytest.approx(0.76 / 0.765)


# Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_those_published(successes: int, n: int, low: float, high: float) -> None:
    assert metrics.wilson(successes, n) == pytest.approx([low, high], abs=5e-5)
    # And mirrored.
    assert metrics.wilson(n - successes, n) == pytest.approx([1 - high, 1 - low], abs=5e-5)


def test_a_share_of_nothing_has_no_value_and_no_interval() -> None:
    assert metrics.share("sensitivity", 0, 0) == {"sensitivity": None, "sensitivity_ci": None}


def test_bootstrap_intervals_are_those_of_drawing_films_one_by_one() -> None:
    probability, labels = drawn(120)
    rng = np.random.default_rng(9)
    sides = [np.flatnonzero(labels == label) for label in (0, 1)]
    areas, biases = [], []
    for _ in range(400):
        chosen = np.concatenate([rng.choice(side, len(side)) for side in sides])
        areas.append(roc_auc_score(labels[chosen], probability[chosen]))
        biases.append(brier_score_loss(labels[chosen], probability[chosen]))
    spread = metrics.intervals(probability, labels, 0.5)
    assert spread["auc"] == pytest.approx(np.percentile(areas, (2.5, 97.5)), abs=0.015)
    assert spread["brier"] == pytest.approx(np.percentile(biases, (2.5, 97.5)), abs=0.005)


def test_a_patient_is_drawn_with_all_films() -> None:
    probability, labels = drawn(80)
    once = metrics.intervals(probability, labels, 0.5, resamples=200)
    patients = np.repeat(np.arange(80), 4)
    four, fourfold = np.repeat(probability, 4), np.repeat(labels, 4)
    # Four films alike of each patient say no more than one ...
    by_patient = metrics.intervals(four, fourfold, 0.5, resamples=200, units=patients)
    for name, edges in once.items():
        assert by_patient[name] == pytest.approx(edges), name
    # ... and look as if they did when they are drawn one by one.
    by_film = metrics.intervals(four, fourfold, 0.5, resamples=200)
    assert np.ptp(by_film["auc"]) < 0.7 * np.ptp(by_patient["auc"])


def test_patients_with_films_of_both_classes_leave_no_resample_without_a_class() -> None:
    probability, labels = np.array([0.2, 0.8, 0.4, 0.6, 0.7, 0.3]), np.array([0, 1, 0, 1, 0, 1])
    spread = metrics.intervals(probability, labels, 0.5, resamples=100, units=np.array([0, 0, 1, 1, 2, 2]))
    assert np.isfinite(list(spread.values())).all()


def test_a_rate_without_a_fault_gets_an_interval_in_which_each_patient_counts_once() -> None:
    probability, labels = np.repeat([0.1, 0.9], 20), np.repeat([0, 1], 20)
    spread = metrics.intervals(probability, labels, 0.5, resamples=50)
    assert spread["sensitivity"] == spread["specificity"] == metrics.wilson(20, 20)
    assert spread["accuracy"] == metrics.wilson(40, 40)
    pairs = metrics.intervals(probability, labels, 0.5, resamples=50, units=np.arange(40) // 2)
    assert pairs["sensitivity"] == metrics.wilson(10, 10)
    nothing = metrics.intervals(probability, labels, 0.95, resamples=50)
    assert nothing["sensitivity"] == metrics.wilson(0, 20)
    assert nothing["precision"] == [0.0, 1.0]


def test_figures_of_a_group_without_one_class_are_none() -> None:
    found = metrics.within(np.array([0.2, 0.9, 0.8]), np.ones(3, int), 0.5, np.arange(3), 10)
    assert (found["n"], found["positives"], found["auc"], found["specificity"]) == (3, 3, None, None)
    assert found["sensitivity"] == pytest.approx(2 / 3)
    assert found["sensitivity_ci"] == metrics.wilson(2, 3)
    assert (found["precision"], found["precision_ci"]) == (1.0, metrics.wilson(2, 2))
    assert (found["npv"], found["npv_ci"]) == (0.0, metrics.wilson(0, 1))
    assert found["brier"] == pytest.approx((0.8**2 + 0.1**2 + 0.2**2) / 3)
    assert found["brier_ci"][0] <= found["brier"] <= found["brier_ci"][1]
    empty = metrics.within(np.empty(0), np.empty(0, int), 0.5, np.empty(0, int), 10)
    assert {name for name, value in empty.items() if value is not None} == {"n", "positives"}


def test_the_histogram_counts_every_film_once() -> None:
    probability, labels = drawn(300)
    found = metrics.histogram(np.append(probability, 1.0), np.append(labels, 1))
    assert sum(found["normal"]) == (labels == 0).sum()
    assert sum(found["pneumonia"]) == (labels == 1).sum() + 1
