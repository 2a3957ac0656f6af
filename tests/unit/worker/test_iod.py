"""What highdicom is told once."""

import highdicom.base
import highdicom.base_content
import pytest
from highdicom import _standard_utils

from tests.unit.worker.reports import POSITIVE, context, encoded, image
from worker.iod import remember
from worker.structured_report import build_structured_report


def test_report_is_the_same_and_the_tables_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    film = image(POSITIVE)
    before = encoded(build_structured_report([film], context(film)))
    asked: list[tuple[str, ...]] = []
    search = _standard_utils.is_attribute_in_iod

    def counted(*args: str, **more: list[str]) -> bool:
        asked.append(args)
        return search(*args, **more)

    monkeypatch.setattr(_standard_utils, "is_attribute_in_iod", counted)
    for module in (highdicom.base, highdicom.base_content):  # put back as they were afterwards
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
