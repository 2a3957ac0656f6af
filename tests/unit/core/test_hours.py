"""A part of the day, by the clock on the wall."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from service.core.hours import Hours

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(("hours", "moment", "inside"), [
    ("08:00-17:00", "2026-01-15 07:00", True),  # 08:00 in Berlin
    ("08:00-17:00", "2026-01-15 06:59", False),
    ("08:00-17:00", "2026-01-15 16:00", False),  # 17:00 is no longer inside
    ("08:00-17:00", "2026-07-15 06:00", True),
    ("19:00-07:00", "2026-01-15 18:00", True),
    ("19:00-07:00", "2026-01-15 23:30", True),
    ("19:00-07:00", "2026-01-15 05:59", True),
    ("19:00-07:00", "2026-01-15 06:00", False),
    ("00:00-06:00", "2026-01-14 23:00", True),
    ("22:00-00:00", "2026-01-14 22:59", True),
    ("22:00-00:00", "2026-01-14 23:00", False),
])  # fmt: skip
def test_the_wall_clock_says_whether_it_is_time(hours: str, moment: str, inside: bool) -> None:
    assert Hours.parse(hours).hold(at(moment), BERLIN) is inside


@pytest.mark.parametrize(("hours", "moment", "begin"), [
    ("19:00-07:00", "2026-01-15 10:30:17", "2026-01-15 18:00"),
    ("19:00-07:00", "2026-07-15 10:30", "2026-07-15 17:00"),
    ("08:00-17:00", "2026-01-15 16:00", "2026-01-16 07:00"),
    ("08:00-17:00", "2026-01-15 09:00:01", "2026-01-15 09:00:01"),  # they last
    # The clock goes from 02:00 to 03:00 on 2026-03-29, from 03:00 back to 02:00 on 2026-10-25.
    ("19:00-07:00", "2026-03-28 12:00", "2026-03-28 18:00"),
    ("19:00-07:00", "2026-03-29 12:00", "2026-03-29 17:00"),
    ("02:30-03:30", "2026-03-28 23:30", "2026-03-29 01:00"),  # 03:00 follows 01:59
    ("02:00-03:00", "2026-03-29 00:30", "2026-03-30 00:00"),  # is not there that day
    ("02:30-02:45", "2026-10-24 23:30", "2026-10-25 00:30"),
    ("02:30-02:45", "2026-10-25 00:50", "2026-10-25 01:30"),  # is there twice
])  # fmt: skip
def test_they_begin_next_by_the_wall_clock_also_when_it_is_moved(hours: str, moment: str, begin: str) -> None:
    assert Hours.parse(hours).begin(at(moment), BERLIN) == at(begin)


@pytest.mark.parametrize("text", ["19-7", "19:00", "24:00-07:00", "07:00-07:00", "7:00-19:00", "", 7])
def test_what_is_no_part_of_a_day_is_said_so(text: object) -> None:
    with pytest.raises(ValueError, match="hours"):
        Hours.parse(text)


def test_they_are_shown_as_they_are_written() -> None:
    assert str(Hours.parse("19:05-07:00")) == "19:05-07:00"
