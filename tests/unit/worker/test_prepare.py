from pathlib import Path
from typing import Literal

import pytest

from tests import factories
from worker.prepare import Prepared, prepare

_AGES = (1, 5)


def prepared(
    folder: Path, population: Literal["refuse", "flag"] = "refuse", **attributes: str | None
) -> Prepared:
    return prepare(factories.write(factories.phantom_chest(**attributes), folder), population, _AGES)


def test_a_child_s_film_has_no_limit(tmp_path: Path) -> None:
    assert prepared(tmp_path).flags == ()


@pytest.mark.parametrize(("said", "flagged"), [("YES", True), ("NO", False), (None, False)])
def test_marks_that_are_burned_in_are_a_limit(said: str | None, flagged: bool, tmp_path: Path) -> None:
    made = prepared(tmp_path, BurnedInAnnotation=said)
    assert made.film is not None
    expected = ("marks are burned into the film (Burned In Annotation is YES)",) if flagged else ()
    assert made.flags == expected


def test_the_gravest_limit_is_named_first(tmp_path: Path) -> None:
    flags = prepared(tmp_path, "flag", PatientAge="064Y", BurnedInAnnotation="YES", WindowCenter=None).flags
    assert [flag.split()[0] for flag in flags[:2]] == ["outside", "marks"]
    assert len(flags) == 3


def test_an_adult_is_refused_or_flagged(tmp_path: Path) -> None:
    limit = "outside the validated population (64 years; validated for 1 to 5 years)"
    refused = prepared(tmp_path, PatientAge="064Y")
    assert (refused.film, refused.reason) == (None, limit)
    assert prepared(tmp_path, "flag", PatientAge="064Y").flags == (limit,)
