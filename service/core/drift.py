"""Whether what comes and what is said of it has changed against a reference window, from sums of the ledger.

Rates are counted of all studies. Distributions are told from histograms, and of a window of more than
`_LOOKED_AT` studies every second, third, … is looked at: with 5,000 on one side chance moves a distribution
by less than 0.02, a fifth of what an alert needs, and a year costs no more than a month. An alert needs both
a change that matters and one that chance does not explain; both bounds stand in `BOUNDS`, and the fewest
studies of a window in `FEWEST`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Integer, cast, func, select
from sqlalchemy.orm import Session

from service.core.results import Finding
from service.core.states import InstanceState
from service.core.tables import Analysis, Instance, Study

FEWEST = 50
WATCHED_DAYS, REFERENCE_DAYS = 7, 28
"""What the metrics look at: the last week against the four before it."""
CHANCE = 0.001
"""What p-values of an alert lie below: many windows are looked at."""
BOUNDS = {"psi": 0.2, "ks": 0.1, "rate": 0.02}
"""PSI above which a population counts as shifted; the least distance of two distributions, of two rates."""
_TENTHS = 10
_CELLS = 1000  # of a probability and of a grey value: KS and quantiles are exact to a thousandth
_GATE_CELLS = 100  # to one of the gate's distance
_FURTHEST = 10  # beyond ten times the gate's bound it does not matter by how much
_LOOKED_AT = 5_000
IMAGES = ("image_mean", "image_deviation", "image_entropy", "image_clipped")
"""What is watched of the films' grey values, by their columns."""
DISTRIBUTIONS = ("score", "gate_distance", *IMAGES)
"""What has a PSI and a distance; all else is a rate."""
Histogram = Mapping[int, int]


@dataclass(frozen=True)
class Change:
    """One thing that is watched, in two windows.

    Attributes
    ----------
    name
        "score", "refusals", "positives", "gate_distance", or one of `IMAGES`.
    reference, current
        Mean of the score or distance, or the rate.
    reference_studies, current_studies
        How many each rests on (films, for distance and grey values).
    psi
        Population stability index, of distributions only.
    ks
        Kolmogorov and Smirnov's distance of two distributions, of distributions only.
    p
        Of that test, or of the test of two proportions; None without studies on both sides.
    is_alert
        The change matters, chance does not explain it, and both windows hold enough.
    """

    name: str
    reference: float | None
    current: float | None
    reference_studies: int
    current_studies: int
    psi: float | None = None
    ks: float | None = None
    p: float | None = None
    is_alert: bool = False

    @property
    def can_alert(self) -> bool:
        """Whether both windows hold enough; without it no alert does not mean no change."""
        return min(self.reference_studies, self.current_studies) >= FEWEST


def drift(
    session: Session,
    since: datetime,
    until: datetime,
    reference_since: datetime,
    reference_until: datetime,
    found: Mapping[str, int] | None = None,
) -> list[Change]:
    """Return what has changed between the studies received in two windows; their ends are not within.

    `found` is how many studies of the present window have which finding, where that was counted already.
    """
    windows = (reference_since, reference_until), (since, until)
    findings = [findings_of(session, *windows[0])]
    findings.append(dict(findings_of(session, *windows[1]) if found is None else found))
    steps = [max(1, -(-sum(each.values()) // _LOOKED_AT)) for each in findings]
    looks = [(*window, step) for window, step in zip(windows, steps, strict=True)]
    scores = [_scores(session, *look) for look in looks]
    films = [_films(session, *look) for look in looks]
    answered = [sum(found.values()) - found.get(Finding.NOT_ANALYSED, 0) for found in findings]
    return [
        _of_distributions("score", scores[0], scores[1], _CELLS),
        _of_rates("refusals", findings, Finding.NOT_ANALYSED, [sum(found.values()) for found in findings]),
        _of_rates("positives", findings, Finding.PRESENT, answered),
        *(
            _of_distributions(name, films[0][name], films[1][name], cells)
            for name, cells in (("gate_distance", _GATE_CELLS), *((name, _CELLS) for name in IMAGES))
        ),
    ]


def psi(reference: Histogram, current: Histogram) -> float | None:
    """Return the population stability index over the reference's tenths (Siddiqi 2006).

    Credit Risk Scorecards: the sum of (q - p) ln(q / p) over bins that each hold a tenth of the reference;
    above 0.2 it has to be looked into. Half a study is added to each bin, so that an empty one is no
    infinity.
    """
    if not reference or not current:
        return None
    edges = _quantiles(reference)
    shares = []
    for histogram in (reference, current):
        counts = [0.5] * (len(edges) + 1)
        for cell, count in histogram.items():
            counts[sum(cell > edge for edge in edges)] += count
        total = sum(counts)
        shares.append([count / total for count in counts])
    before, after = shares
    return sum(((q - p) * math.log(q / p) for p, q in zip(before, after, strict=True)), 0.0)


def kolmogorov_smirnov(reference: Histogram, current: Histogram) -> tuple[float, float] | None:
    """Return the greatest distance of two distributions, and its p by Kolmogorov's limit.

    As `scipy.stats.ks_2samp(method="asymp")` would say it, but for Stephens' correction of the number (1970,
    JRSS B 32:115). Values within a cell are ties, which makes p too great, never too small.
    """
    if not reference or not current:
        return None
    sizes = sum(reference.values()), sum(current.values())
    below, greatest = [0, 0], 0.0
    for cell in sorted({*reference, *current}):
        below[0] += reference.get(cell, 0)
        below[1] += current.get(cell, 0)
        greatest = max(greatest, abs(below[0] / sizes[0] - below[1] / sizes[1]))
    root = math.sqrt(sizes[0] * sizes[1] / sum(sizes))
    scaled = (root + 0.12 + 0.11 / root) * greatest
    if scaled < 0.2:  # the series below does not converge; p is 1 to nine digits
        return greatest, 1.0
    series = sum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return greatest, min(1.0, max(0.0, 2 * series))


def two_proportions(first: tuple[int, int], second: tuple[int, int]) -> float | None:
    """Return the two-sided p of two shares, each (count, of so many), by the pooled z-test."""
    if not first[1] or not second[1]:
        return None
    pooled = (first[0] + second[0]) / (first[1] + second[1])
    variance = pooled * (1 - pooled) * (1 / first[1] + 1 / second[1])
    if not variance:
        return 1.0
    return math.erfc(abs(first[0] / first[1] - second[0] / second[1]) / math.sqrt(2 * variance))


def _of_distributions(name: str, reference: Histogram, current: Histogram, cells: int) -> Change:
    sizes = sum(reference.values()), sum(current.values())
    index, tested = psi(reference, current), kolmogorov_smirnov(reference, current)
    ks, p = tested or (None, None)
    matters = (index or 0) > BOUNDS["psi"] or (ks or 0) > BOUNDS["ks"]
    certain = min(sizes) >= FEWEST and p is not None and p < CHANCE
    means = [_mean(histogram, cells) for histogram in (reference, current)]
    return Change(name, means[0], means[1], sizes[0], sizes[1], index, ks, p, matters and certain)


def _of_rates(name: str, findings: Sequence[Mapping[str, int]], what: Finding, of: Sequence[int]) -> Change:
    counts = [found.get(what, 0) for found in findings]
    rates = [count / total if total else None for count, total in zip(counts, of, strict=True)]
    p = two_proportions((counts[0], of[0]), (counts[1], of[1]))
    apart = 0.0 if None in rates else abs((rates[0] or 0.0) - (rates[1] or 0.0))
    is_alert = apart > BOUNDS["rate"] and min(of) >= FEWEST and p is not None and p < CHANCE
    return Change(name, rates[0], rates[1], of[0], of[1], p=p, is_alert=is_alert)


def _mean(histogram: Histogram, cells: int) -> float | None:
    total = sum(histogram.values())
    return sum((cell + 0.5) / cells * count for cell, count in histogram.items()) / total if total else None


def _quantiles(histogram: Histogram) -> list[int]:
    """Return the cells that end the tenths, each named once: fewer where many studies share a cell."""
    total, below = sum(histogram.values()), 0
    tenth, edges = 1, list[int]()
    for cell in sorted(histogram):
        below += histogram[cell]
        if below * _TENTHS >= total * tenth and below < total:
            edges.append(cell)
            tenth = below * _TENTHS // total + 1
    return edges


def cell_of(session: Session, value: Any, cells: int) -> ColumnElement[int]:
    """Return the whole number of cells below a value of at least 0: one cast rounds, the other cuts."""
    scaled = value * cells
    return cast(func.floor(scaled) if session.get_bind().dialect.name == "postgresql" else scaled, Integer)


def _within(since: datetime, until: datetime) -> ColumnElement[bool]:
    """Return the condition for studies that were sent here in a window: back-fills bring another time's."""
    return (Study.received_at >= since) & (Study.received_at < until) & Study.backfill_id.is_(None)


def findings_of(session: Session, since: datetime, until: datetime) -> dict[str, int]:
    """Return how many studies received in a time have which finding."""
    query = (
        select(Study.finding, func.count())
        .where(_within(since, until), Study.finding.is_not(None))
        .group_by(Study.finding)
    )
    return {finding or "": count for finding, count in session.execute(query)}


def _looked_at(since: datetime, until: datetime, step: int) -> list[ColumnElement[bool]]:
    """Return which studies are looked at, every `step`th of a window's."""
    window = [_within(since, until)]
    # By a hash of the id (Lehmer's generator): two routers that take turns must not be told apart by it.
    drawn = cast(Study.id, BigInteger) * 48271 % 2147483647 % step
    return window if step == 1 else [*window, drawn == 0]


def _scores(session: Session, since: datetime, until: datetime, step: int) -> Histogram:
    cell = cell_of(session, Study.probability, _CELLS).label("cell")
    query = (
        select(cell, func.count())
        .where(*_looked_at(since, until, step), Study.probability.is_not(None))
        .group_by("cell")
    )
    return {min(found, _CELLS - 1): count for found, count in session.execute(query)}


def _films(session: Session, since: datetime, until: datetime, step: int) -> dict[str, Histogram]:
    """Return the histograms of distance and grey values of the analysed films, by what is watched."""
    query = (
        select(Analysis.gate_distance, *(getattr(Instance, name) for name in IMAGES))
        .select_from(Study)
        .join(Instance, (Instance.study_id == Study.id) & (Instance.state == InstanceState.ANALYSED))
        .join(Analysis, (Analysis.instance_id == Instance.id) & (Analysis.model_id == Study.model_id))
        .where(*_looked_at(since, until, step))
    )
    columns = list(zip(*session.execute(query).all(), strict=True)) or [()] * (1 + len(IMAGES))
    counted = {"gate_distance": _counted(columns[0], _GATE_CELLS, _FURTHEST)}
    return counted | {
        name: _counted(column, _CELLS) for name, column in zip(IMAGES, columns[1:], strict=True)
    }


def _counted(values: Iterable[float | None], cells: int, most: int = 1) -> Histogram:
    """Count values by their cell; what lies beyond 0 or `most` is in the first or the last one."""
    last, found = cells * most - 1, Counter[int]()
    for cell, count in Counter([int(value * cells) for value in values if value is not None]).items():
        found[min(max(cell, 0), last)] += count
    return found
