"""The figures of readers' answers, against sums done by hand and against scikit-learn."""

import random

import pytest
from sklearn.metrics import brier_score_loss, cohen_kappa_score

from service.core.agreement import Answer, calibration, figures, kappa, truth_of, wilson


def answers(tp: int, fp: int, tn: int, fn: int, share: float | None = 0.1) -> list[Answer]:
    return [
        *[Answer("", True, 0.9, True)] * tp,
        *[Answer("", True, 0.9, False)] * fp,
        *[Answer("", False, 0.1, False, share)] * tn,
        *[Answer("", False, 0.1, True, share)] * fn,
    ]


def test_wilsons_interval_is_that_of_the_literature() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81/263, 15/148, 0/20, 1/29.
    for count, of, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(count / of, of) == pytest.approx((low, high), abs=5e-5)


def test_kappa_is_that_of_scikit_learn() -> None:
    table = {(1, 1): 40, (1, 0): 9, (0, 1): 3, (0, 0): 77}
    said = [pair[0] for pair, count in table.items() for _ in range(count)]
    found = [pair[1] for pair, count in table.items() for _ in range(count)]
    assert kappa(40, 9, 3, 77) == pytest.approx(cohen_kappa_score(said, found))
    assert kappa(5, 0, 0, 0) is None
    assert kappa(0, 0, 0, 0) is None


def test_sensitivity_counts_the_negatives_that_nobody_saw() -> None:
    # 100 positives, 80 of 100 right; 900 negatives, 5 of 90 drawn ones missed: 50 missed of 900.
    found = figures(answers(80, 20, 85, 5), 100, 900)
    assert found.ppv is not None
    assert found.ppv.value == 0.8
    assert found.npv is not None
    assert found.npv.value == pytest.approx(85 / 90)
    assert found.sensitivity is not None
    assert found.specificity is not None
    assert found.sensitivity.value == pytest.approx(80 / 130)
    assert found.specificity.value == pytest.approx(850 / 870)
    assert found.kappa == pytest.approx(kappa(80, 20, 5, 85))
    assert found.kappa_of_all == pytest.approx(kappa(80, 20, 50, 850))
    assert (found.tp, found.fp, found.tn, found.fn, found.fn_drawn) == (80, 20, 85, 5, 5)


def test_a_negative_that_nobody_drew_says_nothing_of_the_others() -> None:
    found = figures([*answers(8, 2, 0, 0), *answers(0, 0, 0, 7, None)], 10, 90)
    assert found.npv is None
    assert found.sensitivity is None
    assert found.specificity is None
    assert (found.fn, found.fn_drawn) == (7, 0)


def test_negatives_weigh_by_the_share_that_was_drawn_on_their_day() -> None:
    found = figures([*answers(1, 0, 9, 0, 0.1), *answers(0, 0, 0, 5, 0.5)], 1, 100)
    assert found.npv is not None
    assert found.npv.value == pytest.approx(90 / 100)
    # Kish: 100^2 / (9 * 100 + 5 * 4) = 10.87 answers' worth.
    assert (found.npv.low, found.npv.high) == pytest.approx(wilson(0.9, 100**2 / 920))


def test_the_interval_of_sensitivity_holds_the_truth_as_often_as_it_says() -> None:
    chance, held, runs = random.Random(4), 0, 300
    for _ in range(runs):
        said = []
        positives = negatives = 0
        for _ in range(3000):
            ill = chance.random() < 0.2
            positive = chance.random() < (0.85 if ill else 0.1)
            positives, negatives = positives + positive, negatives + (not positive)
            if positive and chance.random() < 0.5:
                said.append(Answer("", True, None, ill))
            elif not positive and chance.random() < 0.1:
                said.append(Answer("", False, None, ill, 0.1))
        found = figures(said, positives, negatives).sensitivity
        assert found is not None
        held += found.low <= 0.85 <= found.high
    assert 0.92 <= held / runs <= 0.985


def test_an_interval_holds_its_own_estimate_where_nothing_was_missed() -> None:
    found = figures(answers(10, 0, 10, 0), 20, 100)
    for share in (found.ppv, found.npv, found.sensitivity, found.specificity):
        assert share is not None
        assert share.value == share.high == 1
        assert share.low < 1


def test_calibration_weighs_answers_by_what_they_stand_for() -> None:
    given = [
        Answer("", True, 0.95, True),
        Answer("", True, 0.95, False),
        Answer("", False, 0.05, False, 0.5),
        Answer("", False, 0.15, True, 0.5),
        Answer("", False, 0.15, True),  # not drawn: left out
    ]
    found = calibration(given, 10, 30)
    assert found is not None
    assert found.of_all
    assert [(item.answers, item.studies, item.observed) for item in found.bins] == [
        (1, 15.0, 0.0),
        (1, 15.0, 1.0),
        (2, 10.0, 0.5),
    ]
    weights = [5, 5, 15, 15]
    expected = brier_score_loss([1, 0, 0, 1], [0.95, 0.95, 0.05, 0.15], sample_weight=weights)
    assert found.brier == pytest.approx(expected)
    assert found.ece == pytest.approx((15 * 0.05 + 15 * 0.85 + 10 * 0.45) / 40)
    alone = calibration(given[:2], 10, 30)
    assert alone is not None
    assert not alone.of_all
    assert calibration([], 10, 30) is None


@pytest.mark.parametrize(
    ("finding", "assessment", "own", "truth"),
    [
        ("present", "agree", None, True),
        ("absent", "agree", None, False),
        ("present", "disagree", None, False),
        ("absent", "disagree", None, True),
        ("present", "disagree", "indeterminate", None),
        ("indeterminate", "disagree", "present", True),
        ("indeterminate", "disagree", None, None),
        ("indeterminate", "agree", None, None),
        ("not_analysed", "disagree", None, None),
        ("present", "unsure", None, None),
        ("present", "unsure", "present", None),
        ("present", "not_usable", None, None),
    ],
)
def test_what_a_reader_finds_follows_from_what_they_say(
    finding: str, assessment: str, own: str | None, truth: bool | None
) -> None:
    assert truth_of(finding, assessment, own) is truth
