"""The study's conclusion from those of its images."""

import pytest

from service.core.results import Finding, Result, conclude

_POSITIVE = Result(Finding.PRESENT, 0.9, 0.5, flags=("age unknown",))
_NEGATIVE = Result(Finding.ABSENT, 0.1, 0.5)
_OPEN = Result(Finding.INDETERMINATE, 0.5, 0.5)
_LATERAL = Result(Finding.NOT_ANALYSED, reason="a lateral view")


def test_one_positive_film_makes_the_study_positive() -> None:
    said = conclude([_NEGATIVE, _POSITIVE, _OPEN, _LATERAL])
    assert (said.finding, said.probability) == (Finding.PRESENT, 0.9)


def test_the_highest_probability_among_equal_findings_is_the_study_s() -> None:
    assert conclude([_NEGATIVE, Result(Finding.ABSENT, 0.2, 0.5)]).probability == 0.2


def test_an_open_film_keeps_a_negative_study_open() -> None:
    assert conclude([_NEGATIVE, _OPEN]).finding is Finding.INDETERMINATE


def test_the_limits_of_every_analysed_film_stay_stated_once() -> None:
    assert conclude([_POSITIVE, _POSITIVE, _NEGATIVE]).flags == ("age unknown",)


def test_a_study_without_an_analysed_film_has_reasons_and_no_number() -> None:
    said = conclude([_LATERAL, _LATERAL, Result(Finding.NOT_ANALYSED, reason="a knee")])
    assert (said.finding, said.probability, said.reason) == (
        Finding.NOT_ANALYSED,
        None,
        "a lateral view; a knee",
    )


def test_a_study_without_images_is_a_programming_error() -> None:
    with pytest.raises(ValueError):
        conclude([])
