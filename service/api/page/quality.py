"""The quality page, and the same numbers over the API and for the report that `hilum quality` writes."""

from datetime import date, datetime, time, timedelta, tzinfo
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Response
from fastapi.responses import HTMLResponse
from pydantic import BeforeValidator

from service.api.page.figures import BEYOND, between, shown
from service.api.page.render import page
from service.api.roles import Act, Caller, may
from service.api.situation import Lookout
from service.api.troubles import all_problems
from service.core.ledger import Ledger
from service.core.live import Live
from service.core.quality import DAYS, By, Quality, quality

_Reader = Annotated[Caller, may(Act.READ)]
_Day = Annotated[date | None, BeforeValidator(lambda text: text or None)]


def quality_routes(live: Live, ledger: Ledger, lookout: Lookout) -> APIRouter:
    """Return `/quality` and `/api/statistics`."""
    router = APIRouter()

    @router.get("/api/statistics")
    def statistics(
        _caller: _Reader,
        since: Annotated[datetime | None, Query(alias="from")] = None,
        until: Annotated[datetime | None, Query(alias="to")] = None,
        by: By = By.WEEK,
        reference_days: Annotated[int, Query(ge=1, le=366)] = DAYS,
    ) -> Quality:
        """Return results against what readers say of them, from a moment (`from`) up to another (`to`).

        Without them: the last four weeks. Studies count under the moment they were received. Shares come with
        their 95 % interval; those of all studies are extrapolated from the negatives that were drawn for
        review. `drift` compares with the `reference_days` before.
        """
        window = _asked(since, until, live.settings.zone)
        with ledger.read() as session:
            return quality(session, *window, by, reference_days)

    @router.get("/quality", response_class=HTMLResponse, include_in_schema=False)
    def quality_page(
        caller: _Reader,
        since: Annotated[_Day, Query(alias="from")] = None,
        until: Annotated[_Day, Query(alias="to")] = None,
        by: By = By.WEEK,
    ) -> Response:
        zone = live.settings.zone
        window = _asked(_midnight(since), _midnight(until, 1), zone)
        with ledger.read() as session:
            values = shown(session, window, by, zone)
        situation = lookout.look()
        return page(
            "quality.html",
            caller=caller,
            situation=situation,
            problems=all_problems(situation, zone),
            first_day=window[0].astimezone(zone).date(),
            last_day=(window[1].astimezone(zone) - timedelta(microseconds=1)).date(),
            **values,
        )

    return router


def _asked(since: datetime | None, until: datetime | None, zone: tzinfo | None) -> tuple[datetime, datetime]:
    try:
        return between(since, until, zone)
    except ValueError as fault:
        raise HTTPException(422, str(fault)) from None


def _midnight(day: date | None, later: int = 0) -> datetime | None:
    """Return the beginning of a day, or of one so many days later; without a zone."""
    if day is None:
        return None
    try:
        return datetime.combine(day, time()) + timedelta(days=later)
    except OverflowError:
        raise HTTPException(422, BEYOND) from None
