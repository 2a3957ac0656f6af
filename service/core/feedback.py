"""What readers say of AI results: kept beside the result, never in its place, and never altered.

An entry holds the result that it speaks of as it was then, so a later revision does not move it. Whoever
changes their mind makes another entry; the newest one of each reader counts. A reader is a name together with
the API token it came with: who writes a name behind a link does not speak for whoever signed in.

Notes can hold anything that a person types. They stay in this table: no log, event, metric or audit message
repeats them, nor what readers are called, but for the audit trail.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import Session, aliased, joinedload

from service.core.ledger import Ledger, now, record_event
from service.core.results import Finding
from service.core.secret import keyed_hash
from service.core.states import Assessment, AssessmentState, FeedbackSource
from service.core.tables import AssessmentReport, Feedback, Revision, Study

OWN_FINDINGS = (Finding.PRESENT, Finding.ABSENT, Finding.INDETERMINATE)
"""What a reader may find."""
UNNAMED = "not named"
LONGEST_NOTE, LONGEST_NAME = 2000, 64
MIXED = "mixed"
"""What readers of one study say together when they do not say the same."""
# Nobody has so many minds about one film: a script that runs wild is stopped here.
_MOST_ENTRIES = 200
_READER_HASH = "reader-"
_AT_A_TIME = 1000


class NotTaken(Exception):
    """Feedback is not taken for a study in this state; the message says why, for people."""


class Contradictory(ValueError):
    """An entry says two things that cannot both be meant; the message says which, for people."""


@dataclass(frozen=True)
class Said:
    """What one reader says.

    Attributes
    ----------
    revision
        Of the report that they saw; None is the current one.
    reader, user
        The name as given, and the API token that it came with; empty for none.
    """

    assessment: Assessment
    source: FeedbackSource
    own_finding: Finding | None = None
    note: str = ""
    reader: str = ""
    user: str = ""
    revision: int | None = None


@dataclass(frozen=True)
class Assessed:
    """The AI result that is spoken of: of which revision of the report and which model, and what it said."""

    revision: int
    model_id: int | None
    finding: str
    probability: float | None
    threshold: float | None


@dataclass(frozen=True)
class State:
    """What is to be told of a study beside its result.

    `feedback` is what readers say of the answer that it has now: one of `Assessment`, `MIXED`, None for
    nothing. `to_review`: it is of the sample of negatives, and nobody has said anything yet.
    """

    feedback: str | None = None
    to_review: bool = False


def store(session: Session, study: Study, said: Said, *, sr: bool) -> tuple[Feedback, bool]:
    """Store what a reader says of a study whose row is locked, and return the entry and whether it is new.

    Who says once more what they said last makes no new entry.

    Parameters
    ----------
    sr
        Whether an SR is to be made of it.

    Raises
    ------
    Contradictory
        When assessment and own finding do not go together.
    NotTaken
        When there is no such result, or no room for it.
    """
    about = assessed(session, study, said.revision)
    _check(said, about.finding)
    note = _clean(said.note, LONGEST_NOTE, lines=True) or None
    reader, user = _clean(said.reader, LONGEST_NAME) or said.user or UNNAMED, said.user
    if study.expired_at is not None:
        if note is not None:
            raise NotTaken("its files were removed, and notes with them: leave the note out")
        reader, user = (pseudonym_of_reader(session, name) for name in (reader, user))
    before = session.scalars(
        select(Feedback)
        .where(Feedback.study_id == study.id, Feedback.reader == reader, Feedback.user == user)
        .order_by(Feedback.id.desc())
        .limit(1)
    ).first()
    if before is not None and (before.revision, before.assessment, before.own_finding, before.note) == (
        about.revision,
        said.assessment,
        said.own_finding,
        note,
    ):
        return before, False
    entries = session.scalar(select(func.count()).where(Feedback.study_id == study.id)) or 0
    if entries >= _MOST_ENTRIES:
        raise NotTaken(f"it has {entries} entries already")
    entry = Feedback(
        study_id=study.id,
        at=now(),
        revision=about.revision,
        model_id=about.model_id,
        finding=about.finding,
        probability=about.probability,
        threshold=about.threshold,
        assessment=said.assessment,
        own_finding=said.own_finding,
        note=note,
        reader=reader,
        user=user,
        source=said.source,
        review_share=study.review_share if about.finding == study.finding else None,
    )
    session.add(entry)
    session.flush()
    if sr and study.expired_at is None:
        session.add(
            AssessmentReport(
                feedback_id=entry.id, state=AssessmentState.PENDING, ready_at=entry.at, lease_token=0
            )
        )
    words = said.assessment.replace("_", " ")
    record_event(session, study, "feedback", f"{words}, of revision {about.revision}, by {said.source}")
    return entry, True


def entries_of(session: Session, study_id: int) -> Sequence[Feedback]:
    """Return all that readers said of a study, the newest first."""
    return session.scalars(
        select(Feedback).where(Feedback.study_id == study_id).order_by(Feedback.id.desc())
    ).all()


def current(entries: Sequence[Feedback]) -> set[int]:
    """Return the ids of those entries that count: the newest one of each reader."""
    newest: dict[tuple[str, str], int] = {}
    for entry in entries:
        reader = entry.reader, entry.user
        newest[reader] = max(entry.id, newest.get(reader, entry.id))
    return set(newest.values())


def entries_between(ledger: Ledger, since: datetime | None, until: datetime | None) -> Iterator[Feedback]:
    """Yield all entries of a time with their studies and models, the oldest first; `until` is not within.

    The ledger is read in pieces: who takes them slowly holds nothing up.
    """
    last = 0
    while True:
        query = (
            select(Feedback)
            .where(Feedback.id > last)
            .options(joinedload(Feedback.study), joinedload(Feedback.model))
            .order_by(Feedback.id)
            .limit(_AT_A_TIME)
        )
        if since is not None:
            query = query.where(Feedback.at >= since)
        if until is not None:
            query = query.where(Feedback.at < until)
        with ledger.read() as session:
            found = session.scalars(query).all()
        yield from found
        if len(found) < _AT_A_TIME:
            return
        last = found[-1].id


def states_of(session: Session, studies: Collection[Study]) -> dict[int, State]:
    """Return by id what is to be told of these studies."""
    finding = {study.id: study.finding for study in studies}
    said: dict[int, list[Feedback]] = {study.id: [] for study in studies}
    for entry in session.scalars(select(Feedback).where(Feedback.study_id.in_(finding))):
        if entry.finding == finding[entry.study_id]:
            said[entry.study_id].append(entry)
    return {study.id: _state(study, said[study.id]) for study in studies}


def wants(feedback: str) -> ColumnElement[bool]:
    """Return the condition for studies of a list.

    Parameters
    ----------
    feedback
        "to_review": of the sample of negatives, and nobody has said anything. "none": there is a result, and
        nobody has said anything of it. "given": somebody has. One of `Assessment`: somebody says that.
    """
    about = (Feedback.study_id == Study.id) & (Feedback.finding == Study.finding)
    said = exists().where(about).correlate(Study)
    match feedback:
        case "to_review":
            return Study.review_share.is_not(None) & ~said
        case "none":
            return Study.finding.is_not(None) & ~said
        case "given":
            return said
        case _:
            later = aliased(Feedback)
            by_them = (later.reader == Feedback.reader) & (later.user == Feedback.user)
            changed = exists().where(
                later.study_id == Feedback.study_id,
                later.finding == Feedback.finding,
                by_them,
                later.id > Feedback.id,
            )
            return exists().where(about, Feedback.assessment == feedback, ~changed).correlate(Study)


def pseudonym_of_reader(session: Session, name: str) -> str:
    """Return what stands for a reader's name once the study's files are gone: the same for the same name."""
    if name in ("", UNNAMED) or name.startswith(_READER_HASH):
        return name
    return _READER_HASH + keyed_hash(session, "reader", name).hex()[:16]


def forget_readers(session: Session, study_id: int) -> None:
    """Let nothing be left of what readers wrote of a study but what they chose, and hashes of their names."""
    for entry in entries_of(session, study_id):
        entry.note = None
        entry.reader = pseudonym_of_reader(session, entry.reader)
        entry.user = pseudonym_of_reader(session, entry.user)


def assessed(session: Session, study: Study, number: int | None) -> Assessed:
    """Return what a revision of a study's report said, None is the newest one.

    Raises
    ------
    NotTaken
        When there is no such result, or it is not known any more.
    """
    if study.removing == "purge":
        raise NotTaken("it is being erased")
    number = study.revision if number is None else number
    if number == 0 or study.finding is None:
        raise NotTaken("it has no result yet")
    found = session.scalars(
        select(Revision).where(Revision.study_id == study.id, Revision.number == number)
    ).one_or_none()
    if found is not None and found.finding is not None:
        return Assessed(number, found.model_id, found.finding, found.probability, found.threshold)
    if number == study.revision:  # reported by a version that did not note it
        return Assessed(number, study.model_id, study.finding, study.probability, study.threshold)
    raise NotTaken(f"what its revision {number} said is not known")


def _check(said: Said, finding: str) -> None:
    own = said.own_finding
    if own is not None and own not in OWN_FINDINGS:
        raise Contradictory(f"an own finding is one of {', '.join(OWN_FINDINGS)}")
    if said.assessment is Assessment.AGREE and own not in (None, finding):
        raise Contradictory("who agrees finds the same: leave the own finding out, or disagree")
    if said.assessment is Assessment.DISAGREE and own == finding:
        raise Contradictory("who disagrees finds something else: leave the own finding out, or agree")


def _clean(text: str, longest: int, *, lines: bool = False) -> str:
    """Return text without what no terminal, XML or DICOM text can hold."""
    kept = "".join(
        letter if letter.isprintable() or (lines and letter == "\n") else " "
        for letter in text.replace("\r\n", "\n")
    )
    return kept.strip()[:longest].strip()


def _state(study: Study, entries: Sequence[Feedback]) -> State:
    counts = current(entries)
    said = {entry.assessment for entry in entries if entry.id in counts}
    feedback = said.pop() if len(said) == 1 else MIXED if said else None
    return State(feedback, study.review_share is not None and not entries)
