"""When the site works: "Mon-Fri 08:00-17:00, Sat 09:00-12:00", by the clock on its wall."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_SPAN = re.compile(
    r"(?P<first>[A-Z][a-z]{2})(?:-(?P<last>[A-Z][a-z]{2}))? "
    r"(?P<begin>[0-2]\d:[0-5]\d)-(?P<end>[0-2]\d:[0-5]\d)"
)
# Whoever has been silent for longer has been noticed.
_LONGEST = timedelta(days=62)


@dataclass(frozen=True)
class Span:
    """From `begin` to `end` (24:00 is None) on some days of the week, Monday 0."""

    days: frozenset[int]
    begin: time
    end: time | None


def parse(text: str) -> tuple[Span, ...]:
    """Return the spans of a comma list.

    Raises
    ------
    ValueError
        When it is none.
    """
    return tuple(_span(item.strip()) for item in text.split(","))


def worked(spans: tuple[Span, ...], begin: datetime, end: datetime, zone: tzinfo | None) -> timedelta:
    """Return the working time between two moments; `zone` None is that of this machine.

    What lies more than two months before `end` is not counted.
    """
    # In UTC: two moments of one zone would be subtracted by the clock on the wall.
    begin, end = max(begin, end - _LONGEST).astimezone(UTC), end.astimezone(UTC)
    total = timedelta()
    for opens, closes in _openings(spans, begin.astimezone(zone).date(), end.astimezone(zone).date(), zone):
        total += max(timedelta(), min(end, closes) - max(begin, opens))
    return total


def _openings(
    spans: tuple[Span, ...], first: date, last: date, zone: tzinfo | None
) -> Iterator[tuple[datetime, datetime]]:
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        for span in spans:
            if day.weekday() in span.days:
                until = day + timedelta(days=span.end is None)
                yield _moment(day, span.begin, zone), _moment(until, span.end or time(), zone)


def _moment(day: date, clock: time, zone: tzinfo | None) -> datetime:
    return datetime.combine(day, clock, zone).astimezone(UTC)


def _span(text: str) -> Span:
    match = _SPAN.fullmatch(text)
    days = {name: number for number, name in enumerate(_DAYS)}
    if match is None or not {match["first"], match["last"] or match["first"]} <= set(days):
        raise ValueError(f'"{text}" is no working time such as Mon-Fri 08:00-17:00')
    first, last = days[match["first"]], days[match["last"] or match["first"]]
    try:
        begin = time.fromisoformat(match["begin"])
        end = None if match["end"] == "24:00" else time.fromisoformat(match["end"])
    except ValueError:
        raise ValueError(f'"{text}" has a time that no clock shows') from None
    if end is not None and end <= begin:
        raise ValueError(f'"{text}" ends before it begins: write the part after midnight as another day\'s')
    return Span(frozenset((first + number) % 7 for number in range((last - first) % 7 + 1)), begin, end)
