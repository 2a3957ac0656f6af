"""Working time by the clock on the wall."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from service.core.working_hours import parse, worked

BERLIN = ZoneInfo("Europe/Berlin")
WEEK = parse("Mon-Fri 08:00-17:00")


def at(day: int, clock: str, zone: ZoneInfo | None = BERLIN, month: int = 6) -> datetime:
    """Return a moment of June 2026, whose first day is a Monday, or of another month."""
    return datetime.combine(datetime(2026, month, day), datetime.strptime(clock, "%H:%M").time(), zone)


@pytest.mark.parametrize(
    ("begin", "end", "hours"),
    [
        (at(1, "09:00"), at(1, "12:00"), 3),
        (at(1, "03:00"), at(1, "08:30"), 0.5),
        (at(1, "16:00"), at(2, "09:00"), 2),
        (at(5, "16:00"), at(8, "09:00"), 2),
        (at(6, "00:00"), at(7, "23:59"), 0),
        (at(1, "00:00"), at(8, "00:00"), 45),
        (at(2, "12:00"), at(1, "12:00"), 0),
    ],
)
def test_nights_and_weekends_do_not_count(begin: datetime, end: datetime, hours: float) -> None:
    assert worked(WEEK, begin, end, BERLIN) == timedelta(hours=hours)


def test_the_clock_is_that_of_the_site() -> None:
    begin, end = datetime(2026, 6, 1, 6, tzinfo=UTC), datetime(2026, 6, 1, 7, tzinfo=UTC)
    assert worked(WEEK, begin, end, BERLIN) == timedelta(hours=1)
    assert worked(WEEK, begin, end, ZoneInfo("UTC")) == timedelta()


def test_a_night_in_which_the_clock_is_changed_is_as_long_as_it_was() -> None:
    # On 2026-03-29 the hour from 02:00 is left out, on 2026-10-25 it comes twice.
    always = parse("Mon-Sun 00:00-24:00")
    assert worked(always, at(29, "00:00", month=3), at(30, "00:00", month=3), BERLIN) == timedelta(hours=23)
    assert worked(always, at(25, "00:00", month=10), at(26, "00:00", month=10), BERLIN) == timedelta(hours=25)


def test_several_times_add_up_and_weeks_wrap_around() -> None:
    spans = parse("Fri-Mon 20:00-24:00, Sat 09:00-12:00")
    assert worked(spans, at(5, "00:00"), at(9, "00:00"), BERLIN) == timedelta(hours=19)


def test_years_of_silence_are_counted_quickly_and_no_further_than_two_months() -> None:
    begin, end = datetime(2000, 1, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)
    assert timedelta(hours=300) < worked(WEEK, begin, end, BERLIN) < timedelta(hours=420)
