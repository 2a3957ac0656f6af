"""A film beside those that weights were validated on."""

from pathlib import Path

import pytest
from pydicom.uid import JPEG2000Lossless

from service.core.header import described, described_by, read_header
from service.core.population import (
    Beside,
    Described,
    Population,
    age_in_words,
    compared,
    scanner_of,
    sentence,
)
from tests import factories

CHILDREN = Population((1.0, 5.0), views=("AP",))


@pytest.mark.parametrize(
    ("years", "said", "beside"),
    [
        (0.99, "11 M", Beside.OUTSIDE),
        (1.0, "1 Y", Beside.INSIDE),
        (5.99, "5 Y", Beside.INSIDE),
        (6.0, "6 Y", Beside.OUTSIDE),
        (None, "", Beside.UNKNOWN),
    ],
)
def test_an_age_is_within_when_its_completed_years_are(
    years: float | None, said: str, beside: Beside
) -> None:
    age = compared(Described(years), CHILDREN)[0]
    assert (age.value, age.validated, age.beside) == (said, "1 to 5 Y", beside)
    assert age_in_words(years) == said


def test_what_nobody_recorded_of_the_validated_films_is_neither_inside_nor_outside() -> None:
    film = Described(64.0, "M", "PA", "Maker DR-1")
    assert sentence(film, CHILDREN) == (
        "Film and validated range: age 64 Y, outside of the validated 1 to 5 Y; view PA, outside of the "
        "validated AP; sex M, scanner Maker DR-1: not recorded of the validated films."
    )
    assert sentence(Described(), CHILDREN) == (
        "Film and validated range: age unknown, validated for 1 to 5 Y; view unknown, validated for AP; "
        "sex unknown, scanner unknown: not recorded of the validated films."
    )


def test_a_film_of_the_validated_kind_is_inside_in_all() -> None:
    validated = Population((1.0, 90.0), ("F", "M"), ("AP", "PA"), ("Maker DR-1",))
    film = Described(4.0, "F", "PA", "Maker DR-1")
    assert {each.beside for each in compared(film, validated)} == {Beside.INSIDE}
    assert str(compared(film, validated)[2]) == "view PA, validated for AP, PA"
    assert Population.of(validated.kept()) == validated


@pytest.mark.parametrize(
    ("maker", "kind", "said"),
    [
        ("Philips", "DigitalDiagnost", "Philips DigitalDiagnost"),
        ("FUJIFILM ", "FUJIFILM  FDR", "FUJIFILM FDR"),
        ("Agfa", "", "Agfa"),
        ("", "DR-1", "DR-1"),
        ("", "", ""),
        ("M" * 90, "", "M" * 64),
    ],
)
def test_a_machine_is_named_by_maker_and_model(maker: str, kind: str, said: str) -> None:
    assert scanner_of(maker, kind) == said


def test_a_header_says_the_same_from_a_file_and_in_memory(tmp_path: Path) -> None:
    film = factories.phantom_chest(
        PatientAge="004Y",
        PatientSex="F",
        ViewPosition="PA",
        Manufacturer="Agfa",
        ManufacturerModelName="DX-D",
    )
    said = Described(4.0, "F", "PA", "Agfa DX-D")
    for syntax in (None, JPEG2000Lossless):
        path = factories.write(film, tmp_path, *([syntax] if syntax else []))
        assert described(read_header(path)) == said
    assert described_by(film) == said


def test_what_people_may_type_is_no_sex_and_no_view(tmp_path: Path) -> None:
    film = factories.phantom_chest(PatientSex="CANARY", ViewPosition="CANARY", StationName="CANARY")
    assert "CANARY" not in repr(described_by(film)).upper()
    assert "CANARY" not in repr(described(read_header(factories.write(film, tmp_path)))).upper()
