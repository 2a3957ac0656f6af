"""How well the network does at this site: results against what readers say, over a time and by group.

Studies count under the moment they were received. The newest entry of each reader about the study's present
finding counts (`service.core.feedback`); most readers decide where several spoke, and a draw counts apart, as
do who was unsure, films that are not usable, and results that are neither present nor absent.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.core.agreement import Answer, Calibration, Figures, calibration, figures, truth_of
from service.core.drift import Change, drift
from service.core.results import Finding
from service.core.tables import Feedback, Instance, Study, Subject

DAYS = 28
"""Of a time that nobody chose, and of the reference window before it."""
UNKNOWN = "unknown"
_MOST_GROUPS = 60
_MORE = "all others"
_AGES = ((1, "under 1"), (6, "1 to 5"), (18, "6 to 17"), (40, "18 to 39"), (65, "40 to 64"))
_OLDEST = "65 and over"
_ORDER = {name: place for place, name in enumerate((*(name for _, name in _AGES), _OLDEST))}


class By(StrEnum):
    """What studies are grouped by. Weeks begin on Monday, in UTC; of several films the first one decides."""

    WEEK = "week"
    CALLING_AE_TITLE = "calling_ae_title"
    MODALITY = "modality"
    SEX = "sex"
    AGE = "age"


@dataclass(frozen=True)
class Group:
    """Studies of one group: how many, how many of them got no number, and what readers' answers come to."""

    name: str
    studies: int
    refused: int
    figures: Figures


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

    @property
    def alerts(self) -> Sequence[Change]:
        """What has drifted."""
        return [change for change in self.drift if change.is_alert]


def quality(
    session: Session, since: datetime, until: datetime, by: By = By.WEEK, reference_days: int = DAYS
) -> Quality:
    """Return how well the network did on the studies received from `since` on up to `until`."""
    counted = _counted(session, since, until, by)
    answers, apart = _answers(session, since, until, by)
    by_finding: Counter[str] = Counter()
    for found in counted.values():
        by_finding.update(found)
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
        _groups(counted, answers, by),
        drift(session, since, until, reference, since),
    )


def _groups(counted: Mapping[str, Counter[str]], answers: Sequence[Answer], by: By) -> list[Group]:
    """Return the groups in their order; those beyond what a page can show are one, the smallest first."""
    # Any station may put anything into a header: a page must stay one.
    size = {name: found.total() for name, found in counted.items()}
    newest = sorted(size, key=lambda name: name if by is By.WEEK else (size[name], name), reverse=True)
    kept = set(newest[:_MOST_GROUPS])
    merged: dict[str, Counter[str]] = {}
    for name, found in counted.items():
        merged.setdefault(name if name in kept else _MORE, Counter()).update(found)
    said: dict[str, list[Answer]] = {name: [] for name in merged}
    for answer in answers:
        said[answer.group if answer.group in kept else _MORE].append(answer)
    names = sorted(merged, key=lambda name: (name in (_MORE, UNKNOWN), _ORDER.get(name, 0), name))
    return [
        Group(
            name,
            merged[name].total(),
            merged[name][Finding.NOT_ANALYSED],
            figures(said[name], merged[name][Finding.PRESENT], merged[name][Finding.ABSENT]),
        )
        for name in names
    ]


def _counted(session: Session, since: datetime, until: datetime, by: By) -> dict[str, Counter[str]]:
    """Return how many studies of each group have which finding."""
    # By its name: PostgreSQL takes the same expression with other parameters for another one.
    key = _key(session, by).label("grouped")
    query = (
        select(key, Study.finding, func.count())
        .select_from(Study)
        .where(
            Study.received_at >= since,
            Study.received_at < until,
            Study.backfill_id.is_(None),
            Study.finding.is_not(None),
        )
        .group_by("grouped", Study.finding)
    )
    counted: dict[str, Counter[str]] = {}
    for name, finding, count in session.execute(_joined(query, by)):
        counted.setdefault(_named(name, by), Counter())[finding or ""] += count
    return counted


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
    for row in session.execute(_joined(query, by)):
        newest.setdefault(row[0], {})[row[1], row[2]] = row
    answers, apart = [], Counter[str]()
    for entries in newest.values():
        rows = list(entries.values())
        finding, probability, name = rows[0][3], rows[-1][6], rows[0][8]
        truths = Counter(truth_of(row[3], row[4], row[5]) for row in rows)
        if finding not in (Finding.PRESENT, Finding.ABSENT):
            apart["no finding"] += 1
        elif truths[True] == truths[False]:
            unusable = any(row[4] == "not_usable" for row in rows)
            apart["readers disagree" if truths[True] else "not usable" if unusable else "unsure"] += 1
        else:
            share = next((row[7] for row in rows if row[7] is not None), None)
            found = truths[True] > truths[False]
            answers.append(Answer(_named(name, by), finding == Finding.PRESENT, probability, found, share))
    return answers, apart


def _joined(query: Select[Any], by: By) -> Select[Any]:
    """Join the first film of each study, and whose it is, where the groups are told from them."""
    if by is By.WEEK:
        return query
    first = select(func.min(Instance.id)).where(Instance.study_id == Study.id).correlate(Study)
    query = query.outerjoin(Instance, Instance.id == first.scalar_subquery())
    return query.outerjoin(Subject, Subject.id == Instance.subject_id) if by is By.SEX else query


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
        case By.SEX:
            return Subject.patient_sex
        case By.AGE:
            age = Instance.patient_age_years
            steps = [(age < bound, name) for bound, name in _AGES]
            return case((age.is_(None), None), *steps, else_=_OLDEST)


def _named(key: Any, by: By) -> str:
    if by is By.WEEK:
        day = key if isinstance(key, date) else date.fromisoformat(key)
        return (day - timedelta(days=day.weekday())).isoformat()
    if by is By.SEX:  # PS3.3 C.7.1.1: nothing else is a value, and free text could name somebody
        return key if key in ("F", "M", "O") else UNKNOWN
    return key or UNKNOWN


def last_days(until: datetime, days: int = DAYS) -> datetime:
    """Return the moment so many days before another one, in UTC."""
    return until.astimezone(UTC) - timedelta(days=days)
