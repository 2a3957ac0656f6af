"""What highdicom is told once."""

import highdicom.base
import highdicom.base_content
import pytest
from highdicom import _standard_utils
from highdicom.sr import CodedConcept
from pydicom.sr.coding import Code
from pynetdicom.dsutils import encode

from tests.unit.worker.reports import POSITIVE, context, encoded, image
from worker.iod import remember
from worker.structured_report import build_structured_report


def test_report_is_the_same_and_the_tables_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("__hash__", "from_code"):  # put back as they were afterwards
        monkeypatch.setattr(CodedConcept, name, getattr(CodedConcept, name))
    film = image(POSITIVE)
    before = encoded(build_structured_report([film], context(film)))
    asked: list[tuple[str, ...]] = []
    search = _standard_utils.is_attribute_in_iod

    def counted(*args: str, **more: list[str]) -> bool:
        asked.append(args)
        return search(*args, **more)

    monkeypatch.setattr(_standard_utils, "is_attribute_in_iod", counted)
    for module in (highdicom.base, highdicom.base_content):
        for name in ("is_attribute_in_iod", "does_iod_have_pixel_data"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(_standard_utils, name))
    remember()
    remember()
    assert encoded(build_structured_report([film], context(film))) == before
    assert asked
    asked.clear()
    assert encoded(build_structured_report([film], context(film))) == before
    assert asked == []


def test_a_code_has_the_hash_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("__hash__", "from_code"):
        monkeypatch.setattr(CodedConcept, name, getattr(CodedConcept, name))
    code = CodedConcept("71388002", "SCT", "Procedure")
    before = hash(code)
    remember()
    assert hash(code) == hash(code) == before == hash(CodedConcept("71388002", "SCT", "Procedure"))
    assert hash(CodedConcept("71388002", "99LOCAL", "Procedure")) != before
    assert encode(code, True, True) == encode(CodedConcept("71388002", "SCT", "Procedure"), True, True)


def test_a_code_becomes_a_data_set_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CodedConcept, "from_code", CodedConcept.from_code)
    code = Code("71388002", "SCT", "Procedure", "20260101")
    before = CodedConcept(*code)
    remember()
    found = CodedConcept.from_code(code)
    assert CodedConcept.from_code(Code(*code)) is found
    assert CodedConcept.from_code(found) is found
    assert encode(found, True, True) == encode(before, True, True)
    assert CodedConcept.from_code(Code("71388002", "SCT", "Other")).meaning == "Other"
