"""Which films go on to the pixels, by their header."""

from typing import Any

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence

from service.core.eligibility import Eligibility, Verdict, assess, population_limit, says_chest
from service.core.header import header_of
from tests import factories


def _verdict(dataset: Dataset) -> Verdict:
    return assess(header_of(dataset, "1.2.840.10008.1.2.1"))


@pytest.mark.parametrize(
    "film",
    [
        factories.phantom_chest(),
        factories.phantom_chest(BodyPartExamined="THORAX", AnatomicRegionSequence=None),
        factories.phantom_chest(BodyPartExamined="", AnatomicRegionSequence=None, ViewCodeSequence=None),
        factories.phantom_chest(ViewPosition="PA"),
        factories.phantom_chest(ImageType=["DERIVED", "PRIMARY"]),
    ],
)
def test_a_frontal_chest_film_goes_on_to_the_pixels(film: Dataset) -> None:
    assert _verdict(film).eligibility is Eligibility.CANDIDATE


@pytest.mark.parametrize(
    ("film", "reason"),
    [
        (factories.knee_film(rows=64, columns=64), "another anatomic region"),
        (factories.phantom_chest(BodyPartExamined="HAND", AnatomicRegionSequence=None), "body part HAND"),
        (factories.lateral_film(rows=64, columns=64), "view position LL"),
        (factories.phantom_chest(Modality="MG"), "modality MG"),
        (factories.phantom_chest(PatientSpeciesDescription="Canine"), "animal"),
        (factories.phantom_chest(NumberOfFrames=2), "2 frames"),
    ],
)
def test_another_radiograph_gets_a_reason(film: Dataset, reason: str) -> None:
    verdict = _verdict(film)
    assert verdict.eligibility is Eligibility.NOT_ANALYSED
    assert verdict.reason.startswith("not a frontal chest radiograph")
    assert reason in verdict.reason


def test_a_lateral_view_told_by_its_code_alone_is_not_analysed() -> None:
    lateral = Dataset()
    lateral.CodeValue, lateral.CodingSchemeDesignator, lateral.CodeMeaning = (
        "399173006",
        "SCT",
        "left lateral",
    )
    film = factories.phantom_chest(ViewPosition=None, ViewCodeSequence=Sequence([lateral]))
    assert _verdict(film).eligibility is Eligibility.NOT_ANALYSED


@pytest.mark.parametrize(
    "thing",
    [
        factories.ct_slice(),
        factories.basic_text_sr(),
        factories.phantom_chest(ImageType=["DERIVED", "SECONDARY"]),
        factories.phantom_chest(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    ],
)
def test_what_is_no_radiograph_is_ignored_with_a_reason(thing: Dataset) -> None:
    verdict = _verdict(thing)
    assert verdict.eligibility is Eligibility.IGNORED
    assert verdict.reason


def test_a_hostile_header_value_is_shortened_and_cleaned_in_the_reason() -> None:
    verdict = _verdict(factories.phantom_chest(Modality="<B>" + "X" * 13))
    assert "<" not in verdict.reason


@pytest.mark.parametrize(("attributes", "years"), [
    ({"PatientAge": "003Y"}, 3.0),
    ({"PatientAge": "018M"}, 1.5),
    ({"PatientAge": None, "PatientBirthDate": "20230115", "StudyDate": "20260115"}, 3.0),
    ({"PatientAge": None, "PatientBirthDate": "", "StudyDate": "20260115"}, None),
    ({"PatientAge": None, "PatientBirthDate": "20300101", "StudyDate": "20260115"}, None),
])  # fmt: skip
def test_age_comes_from_the_age_or_from_the_dates(attributes: dict[str, Any], years: float | None) -> None:
    header = header_of(factories.phantom_chest(**attributes), "1.2.840.10008.1.2.1")
    assert header.patient_age_years == (None if years is None else pytest.approx(years, abs=0.01))


@pytest.mark.parametrize(
    ("age", "inside"), [(0.9, False), (1.0, True), (5.99, True), (6.0, False), (64, False)]
)
def test_the_population_is_counted_in_completed_years(age: float, inside: bool) -> None:
    limit = population_limit(age, (1, 5))
    assert (limit is None) == inside
    assert inside or "validated for 1 to 5 years" in str(limit)


def test_an_unknown_age_is_outside_the_population() -> None:
    assert "age unknown" in str(population_limit(None, (1, 5)))


@pytest.mark.parametrize(("film", "expected"), [
    (factories.phantom_chest(), True),
    (factories.phantom_chest(PatientAge="064Y"), True),
    (factories.lateral_film(rows=64, columns=64), True),
    (factories.phantom_chest(BodyPartExamined="thorax", AnatomicRegionSequence=None), True),
    (factories.phantom_chest(BodyPartExamined="", AnatomicRegionSequence=None), False),
    (factories.phantom_chest(BodyPartExamined="HAND", AnatomicRegionSequence=None), False),
    (factories.phantom_chest(PatientSpeciesDescription="Canine"), False),
    (factories.phantom_chest(Modality="MG"), False),
    (factories.phantom_chest(ImageType=["DERIVED", "SECONDARY"]), False),
    (factories.knee_film(rows=64, columns=64), False),
    (factories.ct_slice(), False),
])  # fmt: skip
def test_a_header_that_says_chest_radiograph_is_told_from_one_that_does_not(
    film: Dataset, expected: bool
) -> None:
    assert says_chest(header_of(film, "1.2.840.10008.1.2.1")) is expected
