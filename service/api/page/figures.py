"""What is shown of results against what readers say of them: on the quality page, and by `hilum quality`."""

from collections.abc import Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Any

from sqlalchemy.orm import Session

from service.api.page.plots import Bar, Dot, bars, calibration_plot
from service.core.agreement import Figures, Share
from service.core.ledger import now
from service.core.quality import By, Quality, last_days, quality

_LONGEST = timedelta(days=3660)
BEYOND = "from and to lie beyond the years that can be asked for"
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


def between(since: datetime | None, until: datetime | None, zone: tzinfo | None) -> tuple[datetime, datetime]:
    """Return both ends of a time, by default the last four weeks; a moment without a zone is the site's.

    Raises
    ------
    ValueError
        With what cannot be asked for.
    """
    try:
        end = _here(until, zone) if until else now()
        begin = _here(since, zone) if since else last_days(end)
        # What is asked of the ledger has to exist too, in any zone.
        _ = begin - timedelta(days=400), end + timedelta(days=400)
    except (OverflowError, ValueError):
        raise ValueError(BEYOND) from None
    if begin >= end:
        raise ValueError("from has to lie before to")
    if end - begin > _LONGEST:
        raise ValueError("ten years at the most can be looked at together")
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
