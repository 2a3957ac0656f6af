"""How well the network does at this site: results against what readers say, over a time and by group.

Studies count under the moment they were received. The newest entry of each reader about the study's present
finding counts (`service.core.feedback`); most readers decide where several spoke, and a draw counts apart, as
do who was unsure, films that are not usable, and results that are neither present nor absent.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, false, func, not_, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.core.agreement import Answer, Calibration, Figures, calibration, figures, truth_of
from service.core.drift import Change, drift
from service.core.models import reporting
from service.core.population import SEXES, Population
from service.core.results import Finding
from service.core.tables import Feedback, Instance, Study

DAYS = 28
"""Of a time that nobody chose, and of the reference window before it."""
UNKNOWN = "unknown"
_MOST_GROUPS = 60
_MORE = "all others"
_SIDES = frozenset((Finding.PRESENT.value, Finding.ABSENT.value))
_AGES = ((1, "under 1"), (6, "1 to 5"), (18, "6 to 17"), (40, "18 to 39"), (65, "40 to 64"))
_OLDEST = "65 and over"
_ORDER = {name: place for place, name in enumerate((*(name for _, name in _AGES), _OLDEST))}


class By(StrEnum):
    """What studies are grouped by. Weeks begin on Monday, in UTC; of several films the first one decides."""

    WEEK = "week"
    CALLING_AE_TITLE = "calling_ae_title"
    MODALITY = "modality"
    SCANNER = "scanner"
    VIEW = "view"
    SEX = "sex"
    AGE = "age"


@dataclass(frozen=True)
class Group:
    """Studies of one group: how many, how many of them got no number, and what readers' answers come to.

    `outside`: of another age, sex, view or scanner than the reporting model was validated for, as far as both
    are known; None where nobody kept for whom it was.
    """

    name: str
    studies: int
    refused: int
    figures: Figures
    outside: int | None = None


@dataclass(frozen=True)
class Coverage:
    """How many studies lie outside of the validated range by one attribute, and of how many it is unknown.

    `validated` is that range in words, empty where it was not recorded (then nothing is outside).
    """

    attribute: str
    validated: str
    studies: int
    outside: int
    unknown: int


@dataclass(frozen=True)
class Quality:
    """All that the quality page says.

    Attributes
    ----------
    since, until, reference_since
        The time looked at, its end not within; the reference window lies between the last and the first.
    studies, by_finding
        Studies with a result, also by finding.
    reviewed
        Studies that a reader spoke of.
    apart
        Of these, not in any matrix: "unsure", "not usable", "readers disagree", "no finding".
    coverage
        How far the studies are of the population for which the model that reports now was validated, by
        age, sex, view and scanner; empty where nobody kept for whom that is.
    """

    since: datetime
    until: datetime
    reference_since: datetime
    by: By
    studies: int
    by_finding: Mapping[str, int]
    reviewed: int
    apart: Mapping[str, int]
    overall: Figures
    calibration: Calibration | None
    groups: Sequence[Group]
    drift: Sequence[Change]
    coverage: Sequence[Coverage] = ()

    @property
    def alerts(self) -> Sequence[Change]:
        """What has drifted."""
        return [change for change in self.drift if change.is_alert]


def quality(
    session: Session, since: datetime, until: datetime, by: By = By.WEEK, reference_days: int = DAYS
) -> Quality:
    """Return how well the network did on the studies received from `since` on up to `until`."""
    validated = _validated(session)
    counted, covered = _counted(session, since, until, by, validated)
    answers, apart = _answers(session, since, until, by)
    by_finding: Counter[str] = Counter()
    for found in counted.values():
        by_finding.update(found.findings)
    whole = by_finding[Finding.PRESENT], by_finding[Finding.ABSENT]
    reference = since - timedelta(days=reference_days)
    return Quality(
        since,
        until,
        reference,
        by,
        sum(by_finding.values()),
        dict(by_finding),
        len(answers) + sum(apart.values()),
        dict(apart),
        figures(answers, *whole),
        calibration(answers, *whole),
        _groups(counted, answers, by, validated),
        drift(session, since, until, reference, since, by_finding),
        covered,
    )


def coverage(session: Session, since: datetime, until: datetime) -> Sequence[Coverage]:
    """Return how far the studies received in a time are of the population of the model that reports."""
    return _counted(session, since, until, By.MODALITY, _validated(session))[1]


def _validated(session: Session) -> Population | None:
    model = reporting(session)
    return Population.of(model.population) if model is not None and model.population else None


@dataclass
class _Counted:
    """Studies of one group by finding, and how many lie outside of the validated range."""

    findings: Counter[str] = field(default_factory=Counter)
    outside: int = 0

    def add(self, other: "_Counted") -> None:
        self.findings.update(other.findings)
        self.outside += other.outside


def _groups(
    counted: Mapping[str, _Counted], answers: Sequence[Answer], by: By, validated: Population | None
) -> list[Group]:
    """Return the groups in their order; those beyond what a page can show are one, the smallest first."""
    # Any station may put anything into a header: a page must stay one.
    size = {name: found.findings.total() for name, found in counted.items()}
    newest = sorted(size, key=lambda name: name if by is By.WEEK else (size[name], name), reverse=True)
    kept = set(newest[:_MOST_GROUPS])
    merged: dict[str, _Counted] = {}
    for name, found in counted.items():
        merged.setdefault(name if name in kept else _MORE, _Counted()).add(found)
    said: dict[str, list[Answer]] = {name: [] for name in merged}
    for answer in answers:
        said[answer.group if answer.group in kept else _MORE].append(answer)
    names = sorted(merged, key=lambda name: (name in (_MORE, UNKNOWN), _ORDER.get(name, 0), name))
    return [
        Group(
            name,
            found.findings.total(),
            found.findings[Finding.NOT_ANALYSED],
            figures(said[name], found.findings[Finding.PRESENT], found.findings[Finding.ABSENT]),
            None if validated is None else found.outside,
        )
        for name, found in ((name, merged[name]) for name in names)
    ]


def _counted(
    session: Session, since: datetime, until: datetime, by: By, validated: Population | None
) -> tuple[dict[str, _Counted], list[Coverage]]:
    """Return how many studies of each group have which finding and are outside, and the latter by attribute.

    One look at the studies for all of it: at 100,000 of them that is what the page takes longest for.
    """
    beside = [] if validated is None else list(_beside(validated))
    sums = [func.sum(case((or_(*(out for _, _, out, _ in beside)), 1), else_=0))] if beside else []
    for _, _, out, unknown in beside:
        sums += [func.sum(case((each, 1), else_=0)) for each in (out, unknown)]
    # By its name: PostgreSQL takes the same expression with other parameters for another one.
    key = _key(session, by).label("grouped")
    query = (
        select(key, Study.finding, func.count(), *sums)
        .select_from(Study)
        .where(
            Study.received_at >= since,
            Study.received_at < until,
            Study.backfill_id.is_(None),
            Study.finding.is_not(None),
        )
        .group_by("grouped", Study.finding)
    )
    counted: dict[str, _Counted] = {}
    totals = [0] * (1 + 2 * len(beside))
    for name, finding, count, *more in session.execute(_joined(query)):
        group = counted.setdefault(_named(name, by), _Counted())
        group.findings[finding or ""] += count
        group.outside += more[0] if more else 0
        totals = [total + int(each) for total, each in zip(totals, (count, *more[1:]), strict=True)]
    covered = [
        Coverage(name, words, totals[0], totals[1 + 2 * place], totals[2 + 2 * place])
        for place, (name, words, _, _) in enumerate(beside)
    ]
    return counted, covered


def _beside(
    validated: Population,
) -> Iterator[tuple[str, str, ColumnElement[bool], ColumnElement[bool]]]:
    """Yield attribute, validated range in words, what is outside of it, and where that is unknown.

    As `service.core.population.compared` says it of one film.
    """
    age, (low, high) = Instance.patient_age_years, validated.age_years
    yield "age", f"{low:g} to {high:g} Y", or_(age < low, age >= high + 1), age.is_(None)
    for name, column, among in (
        ("sex", Instance.patient_sex, validated.sexes),
        ("view", Instance.view_position, validated.views),
        ("scanner", Instance.scanner, validated.scanners),
    ):
        unknown = or_(column.is_(None), column == "")
        if not among:
            yield name, "", false(), unknown
            continue
        yield name, ", ".join(among), and_(not_(unknown), column.not_in(among)), unknown


def _answers(session: Session, since: datetime, until: datetime, by: By) -> tuple[list[Answer], Counter[str]]:
    """Return what readers say, one answer a study, and of how many they do not say it."""
    query = (
        select(
            Feedback.study_id,
            Feedback.reader,
            Feedback.user,
            Feedback.finding,
            Feedback.assessment,
            Feedback.own_finding,
            Feedback.probability,
            Feedback.review_share,
            _key(session, by),
        )
        .select_from(Feedback)
        .join(Study, Study.id == Feedback.study_id)
        .where(
            Study.received_at >= since,
            Study.received_at < until,
            Study.backfill_id.is_(None),
            Feedback.finding == Study.finding,
        )
        .order_by(Feedback.id)
    )
    newest: dict[int, dict[tuple[str, str], Any]] = {}
    for row in session.execute(query if by is By.WEEK else _joined(query)):
        newest.setdefault(row[0], {})[row[1], row[2]] = row
    answers, apart = [], Counter[str]()
    names = {
        name: _named(name, by) for name in {row[8] for entries in newest.values() for row in entries.values()}
    }
    present = Finding.PRESENT.value
    for entries in newest.values():
        rows = list(entries.values())
        finding, probability, name = rows[0][3], rows[-1][6], rows[0][8]
        truths = [truth_of(row[3], row[4], row[5]) for row in rows]
        there, not_there = truths.count(True), truths.count(False)
        if finding not in _SIDES:
            apart["no finding"] += 1
        elif there == not_there:
            unusable = any(row[4] == "not_usable" for row in rows)
            apart["readers disagree" if there else "not usable" if unusable else "unsure"] += 1
        else:
            share = next((row[7] for row in rows if row[7] is not None), None)
            called = finding == present
            answers.append(Answer(names[name], called, probability, there > not_there, share))
    return answers, apart


def _joined(query: Select[Any]) -> Select[Any]:
    """Join the first film of each study: it says of which group the study is."""
    first = select(func.min(Instance.id)).where(Instance.study_id == Study.id).correlate(Study)
    return query.outerjoin(Instance, Instance.id == first.scalar_subquery())


def _key(session: Session, by: By) -> ColumnElement[Any] | InstrumentedAttribute[Any]:
    match by:
        case By.WEEK:
            at: Any = Study.received_at
            if session.get_bind().dialect.name == "postgresql":
                at = func.timezone("UTC", at)
            return func.date(at)
        case By.CALLING_AE_TITLE:
            return Instance.calling_ae_title
        case By.MODALITY:
            return Instance.modality
        case By.SCANNER:
            return Instance.scanner
        case By.VIEW:
            return Instance.view_position
        case By.SEX:
            return Instance.patient_sex
        case By.AGE:
            age = Instance.patient_age_years
            steps = [(age < bound, name) for bound, name in _AGES]
            return case((age.is_(None), None), *steps, else_=_OLDEST)


def _named(key: Any, by: By) -> str:
    if by is By.WEEK:
        day = key if isinstance(key, date) else date.fromisoformat(key)
        return (day - timedelta(days=day.weekday())).isoformat()
    if by is By.SEX:
        return key if key in SEXES else UNKNOWN
    return key or UNKNOWN


def last_days(until: datetime, days: int = DAYS) -> datetime:
    """Return the moment so many days before another one, in UTC."""
    return until.astimezone(UTC) - timedelta(days=days)
