"""Which studies a list shows, as its form says it and its addresses carry it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Query
from pydantic import BeforeValidator

from service.api.status import FeedbackFilter, Wanted
from service.core.results import Finding
from service.core.states import StudyState

# What a form sends of a field that nobody filled in.
_blank: Callable[[object], object] = lambda value: None if value == "" else value  # noqa: E731
_Blank = BeforeValidator(_blank)


@dataclass(frozen=True)
class Filters:
    """What was chosen; `since` and `until` are days at the site, both within.

    What back-fills fetched is a list of its own (`backfilled`): it would bury what was sent today.
    """

    state: Annotated[StudyState | None, _Blank, Query()] = None
    finding: Annotated[Finding | None, _Blank, Query()] = None
    attention: Annotated[bool | None, _Blank, Query()] = None
    since: Annotated[date | None, _Blank, Query()] = None
    until: Annotated[date | None, _Blank, Query()] = None
    feedback: Annotated[FeedbackFilter | None, _Blank, Query()] = None
    backfilled: Annotated[bool | None, _Blank, Query()] = None

    def wanted(self, zone: tzinfo | None) -> Wanted:
        """Return the conditions, with days as moments."""
        until = self.until if self.until is None or self.until == date.max else self.until + timedelta(days=1)
        days = _midnight(self.since, zone), _midnight(until, zone)
        return Wanted(self.state, self.finding, self.attention, *days, self.feedback, bool(self.backfilled))

    @property
    def any(self) -> bool:
        """Whether anything was chosen."""
        return bool(self._chosen)

    def address(self, **more: int | None) -> str:
        """Return the address of this list, with the cursors given."""
        chosen = {**self._chosen, **{name: str(value) for name, value in more.items() if value is not None}}
        return f"/?{urlencode(chosen)}" if chosen else "/"

    @property
    def _chosen(self) -> dict[str, str]:
        given = vars(self).items()
        return {name: str(value).lower() for name, value in given if value is not None and value is not False}


def _midnight(day: date | None, zone: tzinfo | None) -> datetime | None:
    if day is None:
        return None
    # A naive moment is the machine's own; the first and last days of all have no other zones.
    day = min(max(day, date(2, 1, 1)), date(9998, 12, 31))
    moment = datetime.combine(day, time(), zone)
    return moment.astimezone(UTC)
