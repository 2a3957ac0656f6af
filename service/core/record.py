"""An object's entry in the ledger: what it becomes there, and what its coming changes in its study.

What comes while a transaction is written shares the next one, and its wait for the disk. What is usual, an
object that begins a study, is written by prepared statements, without a session and without its objects.
"""

from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, or_, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.core import tally
from service.core.backfill import go_live, of_adopted
from service.core.copies import settle_copies
from service.core.eligibility import Eligibility, Verdict, says_chest
from service.core.errors import OutOfResources
from service.core.group_commit import GroupCommit
from service.core.header import STUDY_ATTRIBUTES, Header, described
from service.core.header import Subject as Named
from service.core.ledger import Ledger, Writing, now, record_event, write_event
from service.core.live import Live
from service.core.prepared import Prepared
from service.core.rejection import Note, apply_note, rejection_of
from service.core.removal import pseudonym
from service.core.retry import retry_instance
from service.core.rules import Decision
from service.core.settings import Settings
from service.core.settlement import settle
from service.core.spool import DIGEST_PREFIX, Spool, older_data_set_digest
from service.core.states import REPORTABLE_INSTANCES, FetchState, InstanceState, StudyState
from service.core.tables import (
    BackfillStudy,
    Instance,
    Rejection,
    Study,
    Subject,
    Tombstone,
    TombstoneInstance,
    UtcDateTime,
)
from service.core.terms import MODALITIES, PRESENTATION_INTENTS, term
from service.core.tombstones import ignored_as_erased

_STATE = {
    Eligibility.CANDIDATE: InstanceState.RECEIVED,
    Eligibility.NOT_ANALYSED: InstanceState.NOT_ANALYSED,
    Eligibility.IGNORED: InstanceState.IGNORED,
}


class Outcome(StrEnum):
    """What became of an object that was answered with success."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    IGNORED = "ignored"
    ERASED = "erased"


@dataclass(frozen=True)
class Origin:
    """Why an object came: by itself, or because a back-fill asked for it.

    `adopted`: a process that died left it, and nobody knows any more.
    """

    backfill_id: int | None = None
    move_originator: str = ""
    adopted: bool = False


@dataclass(frozen=True)
class Entry:
    """What is to be written of one object.

    `path` is where its file lies now; `kept` is that in the ledger's words, None when it is not kept.
    `calling_ae_title` is empty when nobody knows who sent it.
    """

    header: Header
    verdict: Verdict
    decision: Decision
    calling_ae_title: str
    digest: str
    size: int
    path: Path
    kept: str | None
    note: Note | None = None
    origin: Origin = Origin()


_IS_KNOWN = Prepared(select(Study.id).where(Study.study_instance_uid == bindparam("study")))
_STUDY = select(Study).where(Study.study_instance_uid == bindparam("study")).with_for_update()
_KNOWN = select(Instance).where(
    Instance.sop_instance_uid == bindparam("instance"), Instance.digest == bindparam("digest")
)
_ERASED = select(Tombstone.id).where(
    or_(
        Tombstone.study_instance_uid == bindparam("study"),
        Tombstone.id.in_(
            select(TombstoneInstance.tombstone_id).where(
                TombstoneInstance.sop_instance_uid == bindparam("instance")
            )
        ),
    )
)
_DIGESTS = select(Instance.digest).where(Instance.sop_instance_uid == bindparam("instance"))
# Whether there is anything of what is rare: each is then asked for by itself, and locked.
_RARE = Prepared(
    select(
        _ERASED.limit(1).scalar_subquery(),
        _KNOWN.with_only_columns(Instance.id).limit(1).scalar_subquery(),
        select(Rejection.id)
        .where(
            Rejection.study_id == bindparam("study_id"), Rejection.sop_instance_uid == bindparam("instance")
        )
        .limit(1)
        .scalar_subquery(),
        _DIGESTS.where(Instance.digest.not_like(f"{DIGEST_PREFIX}%")).limit(1).scalar_subquery(),
        select(BackfillStudy.backfill_id)
        .where(
            BackfillStudy.study_instance_uid == bindparam("study"),
            BackfillStudy.state == FetchState.MOVING,
            BackfillStudy.at > bindparam("moved_since", type_=UtcDateTime),
        )
        .limit(1)
        .scalar_subquery(),
    )
)
_NEW_STUDY = Prepared.insert(
    Study, "study_instance_uid", "state", "received_at", "first_eligible_at", "due_at", "backfill_id"
)
_NEW_SUBJECT = Prepared.insert(Subject, "study_id", *(field.name for field in fields(Named)))
_NEW_INSTANCE = Prepared.insert(
    Instance,
    *("study_id", "subject_id", "sop_instance_uid", "sop_class_uid", "series_instance_uid"),
    *("transfer_syntax_uid", "digest", "state", "reason", "received_at", "ready_at", "size", "spool_path"),
    *("calling_ae_title", "modality", "view_position", "presentation_intent_type", "acquired_at"),
    *("patient_age_years", "patient_sex", "scanner", "says_chest", "decision"),
)
# No archive takes longer from our C-MOVE to its last object: what was asked for before is forgotten.
_LONGEST_MOVE = timedelta(hours=1)


class _CameBeforeError(Exception):
    """It came in a version that took other digests, by which its new bytes are to be compared."""


class Recorder:
    """Writes entries into the ledger, for any number of threads."""

    def __init__(self, ledger: Ledger, spool: Spool, settings: Settings, live: Live) -> None:
        self._ledger = ledger
        self._spool = spool
        self._quiet = timedelta(seconds=settings.study_quiet_seconds)
        self._longest = timedelta(seconds=settings.study_max_wait_seconds)
        self._live = live
        self._write = GroupCommit(
            ledger, self._record, self._alone, lambda entry: entry.header.study_instance_uid
        )
        self._ae_title = settings.ae_title

    def record(self, entry: Entry) -> Outcome:
        """Write an entry, on disk when this returns.

        Raises
        ------
        OutOfResources
            When the files of its study are being removed.
        SQLAlchemyError
            When the ledger cannot be written now.
        """
        return self._write(entry)

    def _alone(self, entry: Entry) -> Outcome:
        for last_try in (False, False, False, True):
            try:
                with self._ledger.write_plainly() as writing:
                    return self._record(writing, entry)
            except _CameBeforeError:
                entry = replace(entry, digest=older_data_set_digest(entry.path))
            except IntegrityError:
                # Another sender committed the same study or instance first: the next look finds it.
                if last_try:
                    raise
        raise AssertionError("unreachable")

    def _record(self, writing: Writing, entry: Entry) -> Outcome:
        header, moment, connection = entry.header, now(), writing.connection
        names: dict[str, Any] = {"study": header.study_instance_uid, "instance": header.sop_instance_uid}
        is_known = _IS_KNOWN.scalar(connection, names) is not None
        study = writing.session.scalars(_STUDY, names).one_or_none() if is_known else None
        # After the study's row is locked: who erases it holds that.
        names |= {"digest": entry.digest, "study_id": study.id if study is not None else -1}
        names |= {"moved_since": moment - _LONGEST_MOVE}
        ((erased, known, rejected, older, asked),) = _RARE.rows(connection, names)
        if erased is not None and ignored_as_erased(
            writing.session, header.study_instance_uid, header.sop_instance_uid
        ):
            return Outcome.ERASED
        backfill_id = self._backfill_of(writing, study, entry, asked)
        if backfill_id is not None and study is not None and study.backfill_id != backfill_id:
            return Outcome.DUPLICATE  # somebody sends it, and is served as everybody
        if study is not None and study.removing and entry.kept is not None:
            raise OutOfResources("the files of its study are being removed just now")
        _check_digest(entry, older)
        goes_live = self._goes_live(writing, study, entry, backfill_id)
        if known is not None and study is not None:
            found = writing.session.scalars(_KNOWN.with_for_update(), names).first()
            if found is not None:
                return self._known(writing.session, study, found, entry, goes_live=goes_live)
        state, verdict = _STATE[entry.verdict.eligibility], entry.verdict
        if rejected is not None and study is not None:
            state, verdict = _as_rejected(writing.session, study, entry, state)
        if study is None:
            study_id = self._new_study(connection, header, verdict, moment, backfill_id)
            subject_id = _new_subject(connection, study_id, header)
        else:
            study_id, subject_id = study.id, _subject_id(writing.session, study, header)
            self._set_due(study, verdict, moment)
        kept = None if verdict.eligibility is Eligibility.IGNORED else entry.kept
        if study is not None and kept is not None:
            study.expired_at = None
        film = described(header)
        instance = {
            "study_id": study_id,
            "subject_id": subject_id,
            "sop_instance_uid": header.sop_instance_uid,
            "sop_class_uid": header.sop_class_uid,
            "series_instance_uid": header.series_instance_uid,
            "transfer_syntax_uid": header.transfer_syntax_uid,
            "digest": entry.digest,
            "state": state,
            "reason": verdict.reason or None,
            "received_at": moment,
            "ready_at": moment,
            "size": entry.size,
            "spool_path": kept,
            "calling_ae_title": entry.calling_ae_title[:16],
            "modality": term(header.modality, MODALITIES),
            "view_position": film.view,
            "presentation_intent_type": term(header.presentation_intent_type, PRESENTATION_INTENTS),
            "acquired_at": header.acquired_at,
            "patient_age_years": film.age_years,
            "patient_sex": film.sex,
            "scanner": film.scanner,
            "says_chest": says_chest(header),
            "decision": entry.decision.kept(),
        }
        instance_id: int = _NEW_INSTANCE.scalar(connection, instance)
        if entry.note is not None:
            session = writing.session
            arrival = session.get_one(Instance, instance_id)
            apply_note(session, session.get_one(Study, study_id), arrival, entry.note, moment, self._quiet)
        if study is not None and verdict.eligibility is Eligibility.NOT_ANALYSED:
            settle_copies(writing.session, study, header.sop_instance_uid)
        if verdict.eligibility is not Eligibility.CANDIDATE and backfill_id is None:
            why = tally.reason_class(verdict.reason)
            tally.add(tally.FILMS, verdict.eligibility, why, session=writing.session)
        self._tell(connection, study_id, entry, state, backfill_id)
        return Outcome.IGNORED if verdict.eligibility is Eligibility.IGNORED else Outcome.STORED

    def _tell(
        self,
        connection: Connection,
        study_id: int,
        entry: Entry,
        state: InstanceState,
        backfill_id: int | None,
    ) -> None:
        """Write into the study's history what came, and what the rules said of it."""
        whence = entry.calling_ae_title or "a file of a listener that died"
        past = ", fetched by a back-fill" if backfill_id is not None else ""
        detail = f"{entry.header.sop_class_uid.name} from {whence}{past}"
        write_event(connection, study_id, "received", detail)
        if self._live.settings.rules and state != InstanceState.IGNORED:
            write_event(connection, study_id, "rule", str(entry.decision))

    def _goes_live(
        self, writing: Writing, study: Study | None, entry: Entry, backfill_id: int | None
    ) -> bool:
        """Let a study that a back-fill fetched be a live one when somebody sends a radiograph of it."""
        if study is None or study.backfill_id is None or backfill_id is not None:
            return False
        if entry.verdict.eligibility is Eligibility.IGNORED:
            return False
        go_live(writing.session, study, entry.calling_ae_title, self._quiet)
        return True

    def _backfill_of(
        self, writing: Writing, study: Study | None, entry: Entry, asked: int | None
    ) -> int | None:
        """Return the back-fill that an object comes for, None when it was sent here.

        What we asked for by C-MOVE comes as any C-STORE. Most archives say then who asked (PS3.7 9.1.1.1),
        and one that says nothing is believed to send what was asked for.
        """
        origin = entry.origin
        if origin.adopted:
            return (
                study.backfill_id
                if study is not None
                else of_adopted(writing.session, entry.header.study_instance_uid)
            )
        if origin.backfill_id is not None or asked is None:
            return origin.backfill_id
        return asked if origin.move_originator in ("", self._ae_title) else None

    def _new_study(
        self,
        connection: Connection,
        header: Header,
        verdict: Verdict,
        moment: datetime,
        backfill_id: int | None,
    ) -> int:
        is_candidate = verdict.eligibility is Eligibility.CANDIDATE
        study = {
            "study_instance_uid": header.study_instance_uid,
            "state": StudyState.RECEIVING,
            "received_at": moment,
            "first_eligible_at": moment if is_candidate else None,
            "due_at": self._due_at(moment, moment) if is_candidate else moment + self._quiet,
            "backfill_id": backfill_id,
        }
        study_id: int = _NEW_STUDY.scalar(connection, study)
        return study_id

    def _known(
        self, session: Session, study: Study, known: Instance, entry: Entry, *, goes_live: bool
    ) -> Outcome:
        """Answer for an object that is in the ledger already; bytes that got lost are taken again."""
        kept = entry.kept
        if kept is not None and known.spool_path == kept:
            return Outcome.STORED  # adopted while its listener waited for the ledger
        if kept is not None and known.spool_path is None and _is_needed(study, known, goes_live=goes_live):
            self._take_back(session, study, known, kept, entry.header)
            return Outcome.STORED
        if known.spool_path and not self._spool.absolute(known.spool_path).exists():
            known.spool_path, known.last_error = kept, None
            if known.state == InstanceState.FAILED:
                retry_instance(study, known)
            settle(session, study)
            record_event(session, study, "restored", "the bytes of an object were lost and came again")
            return Outcome.STORED
        record_event(session, study, "duplicate", "an object was sent again unchanged")
        return Outcome.DUPLICATE

    def _take_back(self, session: Session, study: Study, known: Instance, kept: str, header: Header) -> None:
        """Keep an object again whose file retention took, and analyse its study anew."""
        known.spool_path, known.last_error = kept, None
        known.subject_id = _subject_id(session, study, header)
        if known.state == InstanceState.NOT_ANALYSED:
            study.build += 1
        else:
            retry_instance(study, known)
        study.expired_at = study.wanted = None
        study.due_at = now() + self._quiet
        if study.state != StudyState.HELD:
            study.state, study.reason = StudyState.RECEIVING, None
        settle(session, study)
        record_event(session, study, "restored", "an object whose file was removed came again")

    def _due_at(self, moment: datetime, first_eligible_at: datetime) -> datetime:
        return min(moment + self._quiet, first_eligible_at + self._longest)

    def _set_due(self, study: Study, verdict: Verdict, moment: datetime) -> None:
        """Restart the quiet time for a candidate; another radiograph only starts one that does not run.

        What is ignored changes nothing, but a study of nothing else is concluded too.
        """
        if verdict.eligibility is Eligibility.CANDIDATE:
            study.first_eligible_at = study.first_eligible_at or moment
            study.due_at = self._due_at(moment, study.first_eligible_at)
            if study.state != StudyState.HELD:
                study.state = StudyState.RECEIVING
        elif study.due_at is None and (
            verdict.eligibility is Eligibility.NOT_ANALYSED or study.state == StudyState.RECEIVING
        ):
            study.due_at = moment + self._quiet


def _check_digest(entry: Entry, older: str | None) -> None:
    if older is not None and entry.digest.startswith(DIGEST_PREFIX):
        raise _CameBeforeError


def _as_rejected(
    session: Session, study: Study, entry: Entry, state: InstanceState
) -> tuple[InstanceState, Verdict]:
    """Return what becomes of an object that a note names, if anything else would."""
    if state == InstanceState.IGNORED:
        return state, entry.verdict
    why = rejection_of(session, study, entry.header.sop_instance_uid)
    return InstanceState.REJECTED, Verdict(Eligibility.IGNORED, why or "")


def _is_needed(study: Study, known: Instance, *, goes_live: bool) -> bool:
    """Return whether an object without its file is taken in again: its study is at work, or asks for it."""
    wanted = goes_live or study.expired_at is None or study.wanted is not None
    return known.state in REPORTABLE_INSTANCES and wanted


def _new_subject(connection: Connection, study_id: int, header: Header) -> int:
    """Insert a patient of a study."""
    subject_id: int = _NEW_SUBJECT.scalar(connection, {"study_id": study_id, **vars(header.subject)})
    return subject_id


def _subject_id(session: Session, study: Study, header: Header) -> int:
    """Return the row of the patient named by `header`; the newest spelling of a name is the current one."""
    given = header.subject
    names = [(given.patient_id, given.issuer_of_patient_id)]
    names.append((pseudonym(session, *names[0]), ""))
    subject = session.scalars(
        select(Subject).where(
            Subject.study_id == study.id,
            tuple_(Subject.patient_id, Subject.issuer_of_patient_id).in_(names),
        )
    ).one_or_none()
    if subject is None:
        return _new_subject(session.connection(), study.id, header)
    subject.patient_id, subject.issuer_of_patient_id = names[0]
    if (subject.accession_number, subject.patient_name) != (given.accession_number, given.patient_name):
        # The newest word counts: of the archive that corrected the images, or of corrected images.
        subject.told = subject.told_by = None
    for name, value in vars(given).items():
        # An object that says nothing of its study does not make the others be found no more.
        if value or name not in STUDY_ATTRIBUTES:
            setattr(subject, name, value)
    session.flush()
    return subject.id
