"""Back-fills: past studies that are looked for in an archive, analysed here and compared with what was found.

The ledger holds all of it: what is looked for (`Backfill`), each study that was found and how far it got
(`BackfillStudy`), and of which back-fill a study here is (`Study.backfill_id`). Worker queue `deliver` does
the asking (`worker.tasks.backfill`), step by step under a lease, so that a killed process costs one step.

A study that is sent here by anybody else is no back-fill's any more, or never becomes one's: `go_live`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from typing import Any, Self

from sqlalchemy import exists, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.core.errors import ConfigurationError
from service.core.ledger import now, record_event
from service.core.settlement import newest_revision
from service.core.states import (
    BackfillState,
    FetchState,
    RevisionState,
    StudyState,
)
from service.core.tables import Backfill, BackfillStudy, Study

IN_FLIGHT = 8
"""Studies of all back-fills that may be between their coming and their result at a time."""
MOST_TRIES = 3
CHEST_PARTS = ("CHEST", "THORAX", "LUNG", "LUNGS", "RIB", "RIBS", "RIBCAGE", "CHESTABDOMEN")
"""What `--body-part CHEST` stands for (PS3.16 Annex L)."""
_WAITING = (FetchState.FOUND, FetchState.FETCHING, FetchState.MOVING)
_IN_WORK = (StudyState.RECEIVING, StudyState.ANALYSING)


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Attributes
    ----------
    first, last
        Study dates, both within, as YYYYMMDD.
    modalities
        Of the series that are fetched; a study without such a series is skipped.
    body_part
        Body Part Examined of these series, empty for any. One that names none is fetched: its films decide.
    ages
        Lowest and highest age in completed years on the study date, both within; None: any. Patients whose
        age the archive does not tell are fetched.
    """

    first: str
    last: str
    modalities: tuple[str, ...]
    body_part: str = ""
    ages: tuple[int, int] | None = None

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Self:
        """Return what `kept` says."""
        ages = kept.get("ages")
        return cls(
            kept["first"],
            kept["last"],
            tuple(kept["modalities"]),
            kept.get("body_part", ""),
            (ages[0], ages[1]) if ages else None,
        )

    def kept(self) -> dict[str, Any]:
        """Return plain values for the ledger."""
        return {**asdict(self), "modalities": list(self.modalities), "ages": list(self.ages or ()) or None}

    def wants_series(self, modality: str, body_part: str) -> bool:
        """Return whether a series is fetched."""
        if modality.upper() not in self.modalities:
            return False
        part = body_part.strip().upper()
        wanted = CHEST_PARTS if self.body_part == "CHEST" else (self.body_part,)
        return not (self.body_part and part) or part in wanted

    def wants_age(self, birth_date: str, study_date: str) -> bool:
        """Return whether the patient was as old as wanted; one whose age is not known is."""
        born, taken = day(birth_date), day(study_date)
        if self.ages is None or born is None or taken is None:
            return True
        years = taken.year - born.year - ((taken.month, taken.day) < (born.month, born.day))
        return self.ages[0] <= years <= self.ages[1]

    def __str__(self) -> str:
        parts = [f"{self.first} to {self.last}", " or ".join(self.modalities)]
        parts += [self.body_part] if self.body_part else []
        parts += [f"{self.ages[0]} to {self.ages[1]} years"] if self.ages else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Found:
    """A study as an archive tells of it."""

    study_instance_uid: str
    study_date: str


@dataclass(frozen=True)
class Progress:
    """How far a back-fill is.

    Attributes
    ----------
    studies
        By `FetchState`.
    in_work, analysed, not_analysed, failed
        Studies that were fetched: without a result yet, with one, refused with a reason, and failed or held.
    live
        Studies that were fetched and have been sent here since: they are no back-fill's any more.
    """

    studies: dict[str, int]
    in_work: int
    analysed: int
    not_analysed: int
    failed: int
    live: int

    @property
    def found(self) -> int:
        """All that the archive told of."""
        return sum(self.studies.values())

    @property
    def fetched(self) -> int:
        return self.studies.get(FetchState.FETCHED, 0)

    @property
    def waiting(self) -> int:
        """Not fetched yet."""
        return sum(self.studies.get(state, 0) for state in _WAITING)


def day(text: str) -> date | None:
    """Return a DICOM date (PS3.5 6.2), None when it is none."""
    digits = text.replace(".", "").replace("-", "")
    try:
        return datetime.strptime(digits, "%Y%m%d").date()
    except ValueError:
        return None


def following(text: str) -> str:
    """Return the day after a DICOM date."""
    found = day(text)
    assert found is not None, text
    return f"{found + timedelta(days=1):%Y%m%d}"


def named(session: Session, name: str) -> Backfill:
    """Return a back-fill.

    Raises
    ------
    ConfigurationError
        When there is none of this name.
    """
    found = session.scalars(select(Backfill).where(Backfill.name == name)).one_or_none()
    if found is None:
        raise ConfigurationError(f"no back-fill {name}: `hilum backfill list` shows them")
    return found


def every(session: Session) -> Sequence[Backfill]:
    """Return all back-fills, the newest first."""
    return session.scalars(select(Backfill).order_by(Backfill.id.desc())).all()


def start(
    session: Session,
    name: str,
    source: str,
    query: Query,
    by: str,
    *,
    delivers: bool,
    way: str,
    rate: int | None,
    hours: str | None,
) -> Backfill:
    """Begin a back-fill, or let one of this name that looks for the same go on.

    Raises
    ------
    ConfigurationError
        When another one has this name.
    """
    found = session.scalars(select(Backfill).where(Backfill.name == name).with_for_update()).one_or_none()
    if found is None:
        found = Backfill(
            name=name,
            source=source,
            query=query.kept(),
            delivers=delivers,
            way=way,
            rate=rate,
            hours=hours,
            state=BackfillState.RUNNING,
            cursor=query.first,
            created_at=now(),
            created_by=by,
            lease_token=0,
            attempts=0,
            ready_at=now(),
        )
        session.add(found)
        try:
            session.flush()
        except IntegrityError:
            raise ConfigurationError(f"back-fill {name} was begun by somebody else just now") from None
        return found
    if (found.source, found.query, found.delivers) != (source, query.kept(), delivers):
        raise ConfigurationError(
            f"back-fill {name} looks for something else ({Query.of(found.query)}, from {found.source}): "
            "give this one another name"
        )
    found.way, found.rate, found.hours = way, rate, hours
    resume(session, found)
    return found


def pause(found: Backfill) -> None:
    """Begin nothing more of it; a study that is being fetched still comes."""
    if found.state == BackfillState.RUNNING:
        found.state = BackfillState.PAUSED


def resume(session: Session, found: Backfill) -> None:
    """Let it go on; what failed, or was not given, gets other tries."""
    session.execute(
        update(BackfillStudy)
        .where(
            BackfillStudy.backfill_id == found.id,
            BackfillStudy.state.in_((FetchState.FAILED, FetchState.MISSING)),
        )
        .values(state=FetchState.FOUND, attempts=0, ready_at=now(), reason=None)
    )
    waits = select(BackfillStudy.id).where(
        BackfillStudy.backfill_id == found.id, BackfillStudy.state.in_(_WAITING)
    )
    if found.cursor is None and session.scalar(waits.limit(1)) is None:
        found.state = BackfillState.DONE
        return
    found.state, found.ready_at, found.finished_at = BackfillState.RUNNING, now(), None


def cancel(found: Backfill) -> None:
    """End it; what was fetched stays, and can be reported on."""
    found.state, found.finished_at = BackfillState.CANCELLED, now()


def add_found(session: Session, backfill_id: int, studies: Iterable[Found]) -> int:
    """Write down studies that an archive told of, each once; return how many are new."""
    given = {study.study_instance_uid: study for study in studies}
    known = set(
        session.scalars(
            select(BackfillStudy.study_instance_uid).where(
                BackfillStudy.backfill_id == backfill_id,
                BackfillStudy.study_instance_uid.in_(given),
            )
        )
    )
    moment = now()
    new = [study for uid, study in given.items() if uid not in known]
    session.add_all(
        BackfillStudy(
            backfill_id=backfill_id,
            study_instance_uid=study.study_instance_uid,
            study_date=study.study_date,
            state=FetchState.FOUND,
            ready_at=moment,
            at=moment,
        )
        for study in new
    )
    return len(new)


def in_flight(session: Session) -> int:
    """Return how many studies of back-fills are between their coming and their result."""
    waiting = select(func.count()).where(Study.backfill_id.is_not(None), Study.state.in_(_IN_WORK))
    return session.scalar(waiting) or 0


def of_adopted(session: Session, study_instance_uid: str) -> int | None:
    """Return the back-fill that asked for a study a file of which was left behind by a process that died."""
    return session.scalars(
        select(BackfillStudy.backfill_id)
        .where(
            BackfillStudy.study_instance_uid == study_instance_uid,
            BackfillStudy.state.in_((*_WAITING, FetchState.FETCHED)),
        )
        .order_by(BackfillStudy.id.desc())
        .limit(1)
    ).first()


def withholds(session: Session, study: Study) -> bool:
    """Return whether results of this study go nowhere: a back-fill fetched it, and was not told to send."""
    if study.backfill_id is None:
        return False
    return not session.scalar(select(Backfill.delivers).where(Backfill.id == study.backfill_id))


def go_live(session: Session, study: Study, sender: str, quiet: timedelta) -> None:
    """Let a study that a back-fill fetched be one that was sent here, and be reported as such.

    What was withheld of it is built and sent: the revision of its result is opened anew.
    """
    withheld = withholds(session, study)
    moment = now()
    study.backfill_id, study.received_at = None, moment
    newest = newest_revision(session, study)
    if withheld and newest is not None and newest.state != RevisionState.FAILED:
        newest.state, newest.last_error = RevisionState.FAILED, "withheld until the study was sent here"
        newest.lease_token += 1
        newest.lease_owner = newest.lease_until = None
        study.revision = newest.number - 1
    if withheld and study.state != StudyState.HELD:
        study.state, study.reason = StudyState.RECEIVING, None
        study.due_at = max(study.due_at or moment, moment + quiet)
    record_event(session, study, "live", f"{sender or 'somebody'} sent it: reported as any other study")


def progress(session: Session, found: Backfill) -> Progress:
    """Return how far a back-fill is."""
    states = dict(
        session.execute(
            select(BackfillStudy.state, func.count())
            .where(BackfillStudy.backfill_id == found.id)
            .group_by(BackfillStudy.state)
        ).all()
    )
    mine = Study.backfill_id == found.id
    by_state: Counter[tuple[str, str | None]] = Counter()
    for state, finding, count in session.execute(
        select(Study.state, Study.finding, func.count()).where(mine).group_by(Study.state, Study.finding)
    ):
        by_state[state, finding] += count
    in_work = sum(count for (state, _), count in by_state.items() if state in _IN_WORK)
    failed = sum(
        count for (state, _), count in by_state.items() if state in (StudyState.FAILED, StudyState.HELD)
    )
    done = {key: count for key, count in by_state.items() if key[0] not in (*_IN_WORK, "failed", "held")}
    refused = sum(count for (_, finding), count in done.items() if finding in (None, "not_analysed"))
    live = session.scalar(
        select(func.count())
        .select_from(BackfillStudy)
        .where(
            BackfillStudy.backfill_id == found.id,
            BackfillStudy.state == FetchState.FETCHED,
            exists().where(
                Study.study_instance_uid == BackfillStudy.study_instance_uid, Study.backfill_id.is_(None)
            ),
        )
    )
    return Progress(states, in_work, sum(done.values()) - refused, refused, failed, live or 0)
