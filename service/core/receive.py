"""From bytes that have arrived to custody: on disk under their final name, and in the ledger.

Both doors (C-STORE and STOW-RS) end here. `Intake.receive` returns only when the object is safe; every other
outcome is an exception that carries its status.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

import structlog
from sqlalchemy import select, tuple_
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from service.core import tally
from service.core.audit import Transfer
from service.core.audit_message import Action
from service.core.copies import settle_copies
from service.core.eligibility import Eligibility, Verdict, assess, says_chest
from service.core.errors import HilumError, Mismatch, OutOfResources
from service.core.failpoints import failpoint
from service.core.file_meta import sending_ae_title
from service.core.header import Header, read_header
from service.core.incoming import full
from service.core.ledger import Ledger, now, record_event
from service.core.live import Live
from service.core.rejection import Note, apply_note, read_note, rejection_of
from service.core.removal import pseudonym
from service.core.retry import retry_instance
from service.core.rules import Decision, decide
from service.core.settings import Settings
from service.core.settlement import settle
from service.core.spool import Spool, data_set_digest
from service.core.states import REPORTABLE_INSTANCES, InstanceState, StudyState
from service.core.tables import Instance, Study, Subject
from service.core.terms import MODALITIES, PRESENTATION_INTENTS, VIEW_POSITIONS, term
from service.core.tombstones import ignored_as_erased

_STATE = {
    Eligibility.CANDIDATE: InstanceState.RECEIVED,
    Eligibility.NOT_ANALYSED: InstanceState.NOT_ANALYSED,
    Eligibility.IGNORED: InstanceState.IGNORED,
}
_log = structlog.get_logger()


class Outcome(StrEnum):
    """What became of an object that was answered with success."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    IGNORED = "ignored"
    ERASED = "erased"


@dataclass(frozen=True)
class Arrival:
    """One object in ``incoming/`` and what its sender said of it, None where the door has no word for it.

    C-STORE names the SOP instance in its command, STOW-RS in the file meta information and maybe the study.
    """

    path: Path
    calling_ae_title: str
    sop_class_uid: str | None = None
    sop_instance_uid: str | None = None
    study_instance_uid: str | None = None


class Intake:
    """Takes custody of arrived objects."""

    def __init__(self, ledger: Ledger, spool: Spool, settings: Settings, live: Live | None = None) -> None:
        self._ledger = ledger
        self._spool = spool
        self._settings = settings
        self._live = live or Live(settings)

    def receive(self, arrival: Arrival, transfer: Transfer | None = None) -> Outcome:
        """Take the object into custody; the file in ``incoming/`` is gone afterwards, whatever happens.

        It should be kept open, and with that locked, until this returns: `service.core.repair`. `transfer` is
        told what became of it, for the audit trail.

        Raises
        ------
        Unreadable, InvalidUID, Mismatch
            The object cannot be taken as it is.
        OutOfResources
            Disk or ledger cannot keep it now, or the files of its study are being removed.
        """
        began, sender = now(), tally.peer(self._settings, arrival.calling_ae_title)
        try:
            with transfer.unread() if transfer is not None else nullcontext(), _in_our_words():
                tally.add(tally.RECEIVED_BYTES, sender, by=arrival.path.stat().st_size)
                header = read_header(arrival.path)
            try:
                with _in_our_words():
                    outcome = self._take(header, arrival)
            except HilumError as fault:
                if transfer is not None:
                    transfer.add_received(header, Action.CREATE, fault.code)
                raise
        finally:
            with suppress(OSError):  # where nothing can be removed it is swept later
                arrival.path.unlink(missing_ok=True)
        if transfer is not None:
            transfer.add_received(header, Action.READ if outcome is Outcome.DUPLICATE else Action.CREATE)
        tally.since(tally.STAGE_SECONDS, began, "receive")
        return outcome

    def _take(self, header: Header, arrival: Arrival) -> Outcome:
        _compare(header, arrival)
        if no_room := full(self._spool, self._settings):
            raise no_room
        kept: str | None = None
        verdict, decision = self._decide(header, arrival.calling_ae_title)
        note = read_note(arrival.path, header)
        digest, size = data_set_digest(arrival.path), arrival.path.stat().st_size
        failpoint("receive.arrived")
        if verdict.eligibility is not Eligibility.IGNORED:
            kept = self._spool.keep(arrival.path)
            failpoint("receive.kept")
        try:
            outcome = self._record(
                header, verdict, decision, arrival.calling_ae_title, digest, size, kept, note
            )
        except OutOfResources:
            self._spool.remove(kept)
            raise
        failpoint("receive.recorded")
        if outcome is not Outcome.STORED:
            self._spool.remove(kept)
        _log.info(
            "receive",
            study_instance_uid=header.study_instance_uid,
            sop_instance_uid=header.sop_instance_uid,
            outcome=outcome,
            reason=verdict.reason,
        )
        return outcome

    def adopt(self, relative: str) -> Outcome:
        """Write a kept file that the ledger does not know into it: its listener died before it could.

        Does no harm to a listener that still lives: whichever comes first writes the row, and both find it.

        Raises
        ------
        Unreadable, InvalidUID
            When the file is no object that could have been kept.
        OutOfResources
            When the files of its study are being removed.
        """
        path = self._spool.absolute(relative)
        header = read_header(path)
        digest, size = data_set_digest(path), path.stat().st_size
        calling_ae_title = sending_ae_title(path)
        verdict, decision = self._decide(header, calling_ae_title)
        outcome = self._record(header, verdict, decision, calling_ae_title, digest, size, relative)
        failpoint("adopt.recorded")
        if outcome is not Outcome.STORED:
            self._spool.remove(relative)
        _log.info("receive.adopted", study_instance_uid=header.study_instance_uid, outcome=outcome)
        return outcome

    def _decide(self, header: Header, calling_ae_title: str) -> tuple[Verdict, Decision]:
        """Return what becomes of the object: by its header, and by the rules of the site as they are now."""
        verdict = assess(header)
        if verdict.eligibility is Eligibility.IGNORED:
            return verdict, Decision()
        decision = decide(self._live.settings.rules, header, calling_ae_title)
        if verdict.eligibility is Eligibility.CANDIDATE and not decision.analyse:
            verdict = Verdict(Eligibility.NOT_ANALYSED, decision.reason)
        return verdict, decision

    def _record(
        self,
        header: Header,
        verdict: Verdict,
        decision: Decision,
        calling_ae_title: str,
        digest: str,
        size: int,
        kept: str | None,
        note: Note | None = None,
    ) -> Outcome:
        for last_try in (False, False, True):
            try:
                with self._ledger.write() as session:
                    return self._record_once(
                        session, header, verdict, decision, calling_ae_title, digest, size, kept, note
                    )
            except IntegrityError:
                # Another sender committed the same study or instance first: the next look finds it.
                if last_try:
                    raise
        raise AssertionError("unreachable")

    def _record_once(
        self,
        session: Session,
        header: Header,
        verdict: Verdict,
        decision: Decision,
        calling_ae_title: str,
        digest: str,
        size: int,
        kept: str | None,
        note: Note | None,
    ) -> Outcome:
        moment = now()
        study = session.scalars(
            select(Study).where(Study.study_instance_uid == header.study_instance_uid).with_for_update()
        ).one_or_none()
        # After the study's row is locked: who erases it holds that.
        if ignored_as_erased(session, header.study_instance_uid, header.sop_instance_uid):
            return Outcome.ERASED
        if study is None:
            study = Study(
                study_instance_uid=header.study_instance_uid, state=StudyState.RECEIVING, received_at=moment
            )
            session.add(study)
            session.flush()
        if study.removing and kept is not None:
            raise OutOfResources("the files of its study are being removed just now")
        known = session.scalars(
            select(Instance)
            .where(Instance.sop_instance_uid == header.sop_instance_uid, Instance.digest == digest)
            .with_for_update()
        ).first()
        if known is not None:
            return self._known(session, study, known, kept, header)
        state = _STATE[verdict.eligibility]
        if state != InstanceState.IGNORED and (why := rejection_of(session, study, header.sop_instance_uid)):
            state, verdict = InstanceState.REJECTED, Verdict(Eligibility.IGNORED, why)
        instance = Instance(
            study_id=study.id,
            subject_id=_subject_id(session, study, header),
            sop_instance_uid=header.sop_instance_uid,
            sop_class_uid=header.sop_class_uid,
            series_instance_uid=header.series_instance_uid,
            transfer_syntax_uid=header.transfer_syntax_uid,
            digest=digest,
            state=state,
            reason=verdict.reason or None,
            received_at=moment,
            ready_at=moment,
            size=size,
            spool_path=None if verdict.eligibility is Eligibility.IGNORED else kept,
            calling_ae_title=calling_ae_title[:16],
            modality=term(header.modality, MODALITIES),
            view_position=term(header.view_position, VIEW_POSITIONS),
            presentation_intent_type=term(header.presentation_intent_type, PRESENTATION_INTENTS),
            acquired_at=header.acquired_at,
            patient_age_years=header.patient_age_years,
            says_chest=says_chest(header),
            decision=decision.kept(),
        )
        session.add(instance)
        if note is not None:
            quiet = timedelta(seconds=self._settings.study_quiet_seconds)
            apply_note(session, study, instance, note, moment, quiet)
        if verdict.eligibility is Eligibility.NOT_ANALYSED:
            settle_copies(session, study, header.sop_instance_uid)
        if instance.spool_path is not None:
            study.expired_at = None
        self._set_due(study, verdict, moment)
        if verdict.eligibility is not Eligibility.CANDIDATE:
            why = tally.reason_class(verdict.reason)
            tally.add(tally.FILMS, verdict.eligibility, why, session=session)
        record_event(
            session,
            study,
            "received",
            f"{header.sop_class_uid.name} from {calling_ae_title or 'a file of a listener that died'}",
        )
        if self._live.settings.rules and state != InstanceState.IGNORED:
            record_event(session, study, "rule", str(decision))
        return Outcome.IGNORED if verdict.eligibility is Eligibility.IGNORED else Outcome.STORED

    def _known(
        self, session: Session, study: Study, known: Instance, kept: str | None, header: Header
    ) -> Outcome:
        """Answer for an object that is in the ledger already; bytes that got lost are taken again."""
        if kept is not None and known.spool_path == kept:
            return Outcome.STORED  # adopted while its listener waited for the ledger
        if kept is not None and known.spool_path is None and _is_needed(study, known):
            self._take_back(session, study, known, kept, header)
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
        study.due_at = now() + timedelta(seconds=self._settings.study_quiet_seconds)
        if study.state != StudyState.HELD:
            study.state, study.reason = StudyState.RECEIVING, None
        settle(session, study)
        record_event(session, study, "restored", "an object whose file was removed came again")

    def _set_due(self, study: Study, verdict: Verdict, moment: datetime) -> None:
        """Restart the quiet time for a candidate; another radiograph only starts one that does not run.

        What is ignored changes nothing, but a study of nothing else is concluded too.
        """
        quiet = timedelta(seconds=self._settings.study_quiet_seconds)
        if verdict.eligibility is Eligibility.CANDIDATE:
            study.first_eligible_at = study.first_eligible_at or moment
            longest = study.first_eligible_at + timedelta(seconds=self._settings.study_max_wait_seconds)
            study.due_at = min(moment + quiet, longest)
            if study.state != StudyState.HELD:
                study.state = StudyState.RECEIVING
        elif study.due_at is None and (
            verdict.eligibility is Eligibility.NOT_ANALYSED or study.state == StudyState.RECEIVING
        ):
            study.due_at = moment + quiet


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Turn what disk and ledger raise into what a sender is to be told."""
    try:
        yield
    except OSError as fault:
        raise OutOfResources(f"the object cannot be written ({fault.strerror})") from fault
    except SQLAlchemyError as fault:
        # The kept file stays: the commit may have happened though its answer got lost.
        raise OutOfResources(f"the ledger cannot be written ({type(fault).__name__})") from fault


def sweep_incoming(spool: Spool, older_than_seconds: float) -> int:
    """Remove what aborted transfers and killed listeners left in ``incoming/``; return how many files."""
    removed = 0
    oldest = now().timestamp() - older_than_seconds
    for left in spool.incoming.iterdir():
        try:
            if left.stat().st_mtime < oldest:
                os.unlink(left)  # noqa: PTH108
                removed += 1
        except OSError as fault:
            _log.warning("receive.leftover_not_removed", error=type(fault).__name__)
    return removed


def _compare(header: Header, arrival: Arrival) -> None:
    if arrival.sop_class_uid not in (None, str(header.sop_class_uid)):
        raise Mismatch("the sender and the data set name different SOP classes")
    if arrival.sop_instance_uid not in (None, str(header.sop_instance_uid)):
        raise Mismatch("the sender and the data set name different SOP instances")
    if arrival.study_instance_uid not in (None, str(header.study_instance_uid)):
        raise Mismatch("the sender and the data set name different studies")


def _is_needed(study: Study, known: Instance) -> bool:
    """Return whether an object without its file is taken in again: its study is at work, or asks for it."""
    return known.state in REPORTABLE_INSTANCES and (study.expired_at is None or study.wanted is not None)


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
    if subject is not None:
        subject.patient_id, subject.issuer_of_patient_id = names[0]
    else:
        subject = Subject(
            study_id=study.id, patient_id=given.patient_id, issuer_of_patient_id=given.issuer_of_patient_id
        )
        session.add(subject)
    if (subject.accession_number, subject.patient_name) != (given.accession_number, given.patient_name):
        # The newest word counts: of the archive that corrected the images, or of corrected images.
        subject.told = subject.told_by = None
    subject.patient_name = given.patient_name
    subject.patient_birth_date = given.patient_birth_date
    subject.patient_sex = given.patient_sex
    subject.accession_number = given.accession_number
    session.flush()
    return subject.id
