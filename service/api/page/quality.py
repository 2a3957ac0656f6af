"""The quality page, and the same numbers over the API and for the report that `hilum quality` writes."""

from collections.abc import Sequence
from datetime import date, datetime, time, timedelta, tzinfo
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Response
from fastapi.responses import HTMLResponse
from pydantic import BeforeValidator
from sqlalchemy.orm import Session

from service.api.page.plots import Bar, Dot, bars, calibration_plot
from service.api.page.render import page
from service.api.roles import Act, Caller, may
from service.api.situation import Lookout
from service.api.troubles import all_problems
from service.core.agreement import Figures, Share
from service.core.ledger import Ledger, now
from service.core.live import Live
from service.core.quality import DAYS, By, Quality, last_days, quality

_Reader = Annotated[Caller, may(Act.READ)]
_Day = Annotated[date | None, BeforeValidator(lambda text: text or None)]
_LONGEST = timedelta(days=3660)
GROUPINGS = {
    By.WEEK: "Week",
    By.CALLING_AE_TITLE: "Calling AE title",
    By.MODALITY: "Modality",
    By.SCANNER: "Scanner",
    By.VIEW: "View position",
    By.SEX: "Sex",
    By.AGE: "Age (years)",
}
WATCHED = {
    "score": "Probability, mean",
    "refusals": "Studies without a number",
    "positives": "Positives among results",
    "gate_distance": "Distance from the training films (1: the gate's bound), mean",
    "image_mean": "Grey value of the films, mean (0 %: black)",
    "image_deviation": "Contrast of the films (standard deviation of the grey value), mean",
    "image_entropy": "Entropy of the films' grey values (of 8 bits), mean",
    "image_clipped": "Black or white to the limit, share of a film's pixels, mean",
}


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
        window = between(since, until, live.settings.zone)
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
        window = between(_midnight(since), _midnight(until, 1), zone)
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


def between(since: datetime | None, until: datetime | None, zone: tzinfo | None) -> tuple[datetime, datetime]:
    """Return both ends of a time, by default the last four weeks; or answer 422.

    A moment without a zone is the site's.
    """
    try:
        end = _here(until, zone) if until else now()
        begin = _here(since, zone) if since else last_days(end)
        # What is asked of the ledger has to exist too, in any zone.
        _ = begin - timedelta(days=400), end + timedelta(days=400)
    except (OverflowError, ValueError):
        raise HTTPException(422, "from and to lie beyond the years that can be asked for") from None
    if begin >= end:
        raise HTTPException(422, "from has to lie before to")
    if end - begin > _LONGEST:
        raise HTTPException(422, "ten years at the most can be looked at together")
    return begin, end


def shown(session: Session, window: tuple[datetime, datetime], by: By, zone: tzinfo | None) -> dict[str, Any]:
    """Return what `figures.html` shows of a time: numbers, and plots of them."""
    found = quality(session, *window, by)
    return {
        "quality": found,
        "groupings": GROUPINGS,
        "watched": WATCHED,
        "zone": zone,
        "matrix": _matrix(found.overall),
        "rates": _rates(found.overall),
        "plots": _plots(found),
    }


def _plots(found: Quality) -> Sequence[Any]:
    groups, title = found.groups, GROUPINGS[found.by].lower()

    def plotted(name: str, share: str) -> Any:
        values = [(item.name, getattr(item.figures, share)) for item in groups]
        return bars(name, [Bar(label, s.value, s.low, s.high) if s else Bar(label) for label, s in values])

    plots = [
        plotted(f"PPV by {title}, with its 95 % interval", "ppv"),
        plotted(f"NPV by {title}, with its 95 % interval", "npv"),
    ]
    refused = [Bar(item.name, item.refused / item.studies if item.studies else None) for item in groups]
    plots.append(bars(f"Share of studies without a number by {title}", refused))
    if found.coverage:
        outside = [Bar(item.name, (item.outside or 0) / item.studies) for item in groups if item.studies]
        plots.append(bars(f"Share of studies outside of the validated range by {title}", outside))
    if found.calibration:
        dots = [Dot(item.mean_probability, item.observed, item.answers) for item in found.calibration.bins]
        plots.append(calibration_plot("Calibration: share with pneumonia by probability", dots))
    return plots


def _matrix(overall: Figures) -> Sequence[tuple[str, int, int]]:
    return [("present", overall.tp, overall.fp), ("absent", overall.fn, overall.tn)]


def _rates(overall: Figures) -> Sequence[tuple[str, Share | None, str]]:
    return [
        ("PPV (precision)", overall.ppv, "of the positives that readers spoke of"),
        ("NPV", overall.npv, "of the negatives drawn for review"),
        ("Sensitivity (recall)", overall.sensitivity, "extrapolated to all studies"),
        ("Specificity", overall.specificity, "extrapolated to all studies"),
    ]


def _here(moment: datetime, zone: tzinfo | None) -> datetime:
    return moment.astimezone(zone) if moment.tzinfo else moment.replace(tzinfo=zone).astimezone(zone)


def _midnight(day: date | None, later: int = 0) -> datetime | None:
    """Return the beginning of a day, or of one so many days later; without a zone."""
    if day is None:
        return None
    try:
        return datetime.combine(day, time()) + timedelta(days=later)
    except OverflowError:
        raise HTTPException(422, "from and to lie beyond the years that can be asked for") from None
