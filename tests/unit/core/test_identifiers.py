"""UIDs: what is let in, and that ours are always the same for the same things."""

import pytest

from service.core.errors import InvalidUID
from service.core.identifiers import checked_uid, report_uid, series_uid

_SOURCES = [("1.2.3", "aa"), ("1.2.4", "bb")]


@pytest.mark.parametrize("value", ["1.2.840.10008", "1.02.3", "2.25." + "9" * 38])
def test_a_uid_of_digits_and_dots_is_accepted(value: str) -> None:
    assert checked_uid(value, "SOPInstanceUID") == value


@pytest.mark.parametrize("value", ["", None, "../../x", "/abs", "1..2", "1.2\0", "1.2.a", "1" * 65, "1.2\n"])
def test_anything_else_is_refused_without_being_repeated(value: str | None) -> None:
    with pytest.raises(InvalidUID) as refused:
        checked_uid(value, "SOPInstanceUID")
    assert "SOPInstanceUID" in str(refused.value)
    assert not value or value not in str(refused.value)
    assert refused.value.dimse_status == 0x0117


def test_the_same_report_of_the_same_images_is_the_same_object_in_any_order() -> None:
    series = series_uid("site", "1.2", "f" * 64, "sr", "1.2.840")
    one = report_uid(series, "threshold=0.5", _SOURCES, 0, 0)
    assert one == report_uid(series, "threshold=0.5", _SOURCES[::-1], 0, 0)
    assert len(one) <= 64


def test_whatever_changes_the_report_changes_its_uid() -> None:
    series = series_uid("site", "1.2", "f" * 64, "sr", "1.2.840")
    others = {
        report_uid(series, "threshold=0.5", _SOURCES, 0, 0),
        report_uid(series, "threshold=0.6", _SOURCES, 0, 0),
        report_uid(series, "threshold=0.5", _SOURCES[:1], 0, 0),
        report_uid(series, "threshold=0.5", [("1.2.3", "ac"), _SOURCES[1]], 0, 0),
        report_uid(series, "threshold=0.5", _SOURCES, 1, 0),
        report_uid(series, "threshold=0.5", _SOURCES, 0, 1),
        report_uid(series_uid("other", "1.2", "f" * 64, "sr", "1.2.840"), "threshold=0.5", _SOURCES, 0, 0),
        report_uid(series_uid("site", "1.2", "e" * 64, "sr", "1.2.840"), "threshold=0.5", _SOURCES, 0, 0),
        report_uid(series_uid("site", "1.2", "f" * 64, "sr", "1.2.841"), "threshold=0.5", _SOURCES, 0, 0),
    }
    assert len(others) == 9
