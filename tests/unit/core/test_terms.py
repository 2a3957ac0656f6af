"""What is shown of attributes into which people type."""

from pathlib import Path

import pytest

from service.core.eligibility import _CHEST_BODY_PARTS, _FRONTAL_VIEWS, _RADIOGRAPH_MODALITIES, assess
from service.core.header import read_header
from service.core.terms import BODY_PARTS, MODALITIES, VIEW_POSITIONS
from tests import factories


@pytest.mark.parametrize("keyword", ["BodyPartExamined", "ViewPosition", "Modality"])
def test_a_reason_repeats_no_word_that_is_no_term(keyword: str, tmp_path: Path) -> None:
    film = factories.phantom_chest(AnatomicRegionSequence=None, **{keyword: "CANARY"})
    reason = assess(read_header(factories.write(film, tmp_path))).reason
    assert "of no standard term" in reason
    assert "CANARY" not in reason


def test_terms_that_decide_are_known_terms() -> None:
    assert _RADIOGRAPH_MODALITIES <= MODALITIES
    assert _CHEST_BODY_PARTS - {""} <= BODY_PARTS
    assert _FRONTAL_VIEWS - {""} <= VIEW_POSITIONS


def test_a_time_of_acquisition_is_digits_or_nothing(tmp_path: Path) -> None:
    film = factories.phantom_chest()
    assert read_header(factories.write(film, tmp_path)).acquired_at == "20260115101500"
    path = factories.write(film, tmp_path)
    path.write_bytes(path.read_bytes().replace(b"101500", b"CANARY"))
    assert read_header(path).acquired_at == ""
