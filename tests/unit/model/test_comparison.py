"""What a widened network changes on one population, and what may be said of it."""

import numpy as np
import pytest

from model.measuring.comparison import Scored, compared, verdict


def scored(gain: float, films: int = 400, seed: int = 0) -> Scored:
    """Two films a patient; the second network's scores lie `gain` further apart than those of the first."""
    rng = np.random.default_rng(seed)
    labels = np.arange(films) // 2 % 2
    before = rng.normal(labels * 1.0, 1.0)
    after = before + gain * labels
    probabilities = [1 / (1 + np.exp(-2 * (each - 0.5))) for each in (before, after)]
    return Scored(labels, np.arange(films) // 2, *probabilities, *(each >= 0.5 for each in probabilities))


def test_a_change_is_the_difference_of_what_both_say_of_the_same_films() -> None:
    found = compared(scored(0.8))
    assert (found["n"], found["patients"]) == (400, 200)
    for name in ("auc", "sensitivity", "specificity", "brier"):
        assert found["change"][name] == pytest.approx(found["after"][name] - found["before"][name])
        low, high = found["change"][f"{name}_ci"]
        assert low <= found["change"][name] <= high
    assert found["change"]["specificity"] == 0.0
    assert found["change"]["auc_ci"][0] > 0.0


def test_a_change_is_known_better_than_either_figure_since_the_films_are_the_same() -> None:
    found = compared(scored(0.1))
    width = {when: np.ptp(found[when]["auc_ci"]) for when in ("before", "after", "change")}
    assert width["change"] < width["before"] / 2


def test_films_of_one_patient_stay_together_when_patients_are_drawn() -> None:
    films = scored(0.8)
    alone = compared(Scored(**vars(films) | {"patients": np.arange(400)}))
    twice = compared(Scored(**{name: np.repeat(values, 2) for name, values in vars(films).items()}))
    # Twice the films of the same patients are no more patients.
    assert twice["patients"] == 200
    assert np.ptp(twice["change"]["auc_ci"]) > 0.9 * np.ptp(alone["change"]["auc_ci"])


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ([-0.010, 0.004], "a loss of more than 0.01 of AUC is excluded"),
        ([-0.011, 0.004], "a loss of more than 0.01 of AUC cannot be excluded"),
        ([-0.030, -0.001], "something was forgotten"),
    ],
)
def test_nothing_counts_as_kept_that_may_have_been_lost(interval: list[float], said: str) -> None:
    words = verdict({"auc_ci": interval}, compared(scored(0.8))["change"])
    assert f"On the first population {said};" in words
    assert words.endswith("on the other one it is better than before.")


def test_a_gain_that_may_be_chance_is_no_gain() -> None:
    same = compared(scored(0.0))["change"]
    assert verdict(same, same).endswith("on the other one no gain is shown beyond chance.")
