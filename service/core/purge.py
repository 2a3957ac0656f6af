"""A study is erased: files, patient, results, reports, feedback, history; `service.core.tombstones` stays.

The file of erasures is written first, then the ledger says that the study goes, and from then on nothing of
it is taken in or worked on; then its files go, then its rows. After a kill in between the scheduler goes on
from there, within half a minute or at its next start.
"""

from collections import Counter
from dataclasses import dataclass, field

import structlog
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.core.audit import Audit
from service.core.failpoints import failpoint
from service.core.ledger import Ledger, now
from service.core.removal import Removed, files_of, remove_files, size_of, stop_work, whose
from service.core.spool import Spool
from service.core.states import DELIVERED_STATES
from service.core.tables import (
    Analysis,
    AssessmentReport,
    Confirmation,
    Event,
    Feedback,
    Instance,
    Notice,
    Occurrence,
    Outbox,
    Rejection,
    Report,
    Revision,
    Shadow,
    Study,
    Subject,
)
from service.core.tombstones import (
    Erasure,
    ErasureFile,
    add_tombstone,
    remove_tombstone,
    tombstone_of,
)

PURGE = "purge"
_log = structlog.get_logger()


@dataclass(frozen=True)
class Held:
    """What there is of a study.

    `delivered` counts, by destination, the reports of it that were sent.
    """

    sop_instance_uids: tuple[str, ...]
    there: Removed
    delivered: dict[str, int] = field(default_factory=dict)


def look(ledger: Ledger, spool: Spool, study_instance_uid: str) -> Held | None:
    """Return what would be erased of a study, None when the ledger does not know it."""
    with ledger.read() as session:
        study_id = session.scalars(
            select(Study.id).where(Study.study_instance_uid == study_instance_uid)
        ).one_or_none()
        if study_id is None:
            return None
        sent = session.scalars(
            select(Outbox.destination)
            .join(Report)
            .where(Report.study_id == study_id, Outbox.state.in_(DELIVERED_STATES))
        )
        return Held(
            tuple(_instances(session, study_id)),
            size_of(spool, files_of(session, study_id)),
            dict(sorted(Counter(sent).items())),
        )


def purge(
    ledger: Ledger, spool: Spool, audit: Audit, study_instance_uid: str, by: str, reason: str
) -> Removed:
    """Erase a study that the ledger knows; `by` and `reason` are kept, and name no patient.

    Raises
    ------
    SQLAlchemyError, OSError
        When ledger or data folder cannot be written now; what was begun is gone on with by the scheduler.
    """
    with ledger.read() as session:
        study_id = session.scalars(
            select(Study.id).where(Study.study_instance_uid == study_instance_uid)
        ).one()
        named = _instances(session, study_id)
        begun = tombstone_of(session, study_instance_uid) is not None
    erasure = Erasure(study_instance_uid, named, now().isoformat(), by, reason)
    if not begun:
        ErasureFile(spool).append(erasure)
        failpoint("purge.written")
        _mark(ledger, erasure)
        failpoint("purge.marked")
    return _finish(ledger, spool, audit, study_id)


def lift(ledger: Ledger, spool: Spool, study_instance_uid: str, by: str, reason: str) -> bool:
    """Let an erased study come again; return whether there was one."""
    with ledger.read() as session:
        if tombstone_of(session, study_instance_uid) is None:
            return False
    ErasureFile(spool).append(Erasure(study_instance_uid, [], now().isoformat(), by, reason, erased=False))
    failpoint("purge.lift_written")
    with ledger.write() as session:
        remove_tombstone(session, study_instance_uid)
    _log.info("purge.lifted", study_instance_uid=study_instance_uid, by=by)
    return True


def finish_erasures(ledger: Ledger, spool: Spool, audit: Audit) -> int:
    """Go on with what was begun, and do what the file of erasures says; return of how many studies.

    A restored ledger lacks what was erased, or let in again, after its backup was made; a data folder that
    was lost lacks the file.
    """
    file = ErasureFile(spool)
    said = file.newest()
    done = 0
    with ledger.read() as session:
        known = {uid for uid in said if tombstone_of(session, uid) is not None}
    for uid, erasure in said.items():
        if erasure.erased and uid not in known:
            _mark(ledger, erasure)
            done += 1
        elif not erasure.erased and uid in known:
            with ledger.write() as session:
                done += remove_tombstone(session, uid)
    with ledger.read() as session:
        begun = session.scalars(select(Study.id).where(Study.removing == PURGE)).all()
    for study_id in begun:
        _finish(ledger, spool, audit, study_id)
    return done


def _mark(ledger: Ledger, erasure: Erasure) -> None:
    with ledger.write() as session:
        study = session.scalars(
            select(Study).where(Study.study_instance_uid == erasure.study_instance_uid).with_for_update()
        ).one_or_none()
        if tombstone_of(session, erasure.study_instance_uid) is None:
            add_tombstone(session, erasure)
        if study is not None:
            stop_work(session, study, "the study is erased")
            study.removing, study.expired_at = PURGE, now()


def _finish(ledger: Ledger, spool: Spool, audit: Audit, study_id: int) -> Removed:
    with ledger.read() as session:
        study = session.get(Study, study_id)
        if study is None:
            return Removed()  # somebody else was quicker
        study_instance_uid = study.study_instance_uid
        paths = files_of(session, study_id)
        told = whose(session, study_id)
        stone = tombstone_of(session, study_instance_uid)
    removed = remove_files(spool, paths)
    failpoint("purge.files_removed")
    # While it is known whose it was: after a kill it is told again rather than not at all.
    audit.study_deleted(study_instance_uid, *told, stone.by if stone else "")
    failpoint("purge.told")
    with ledger.write() as session:
        study = session.get(Study, study_id, with_for_update=True)
        if study is None:
            return removed  # somebody else was quicker
        _delete_rows(session, study_id)
    failpoint("purge.rows_deleted")
    ledger.overwrite_deleted()
    _log.warning(
        "purge.done", study_instance_uid=study_instance_uid, files=removed.files, bytes=removed.bytes
    )
    return removed


def _delete_rows(session: Session, study_id: int) -> None:
    """Delete all rows of a study, who points before who is pointed to."""
    instances = select(Instance.id).where(Instance.study_id == study_id)
    reports = select(Report.id).where(Report.study_id == study_id)
    deliveries = select(Outbox.id).where(Outbox.report_id.in_(reports))
    feedback = select(Feedback.id).where(Feedback.study_id == study_id)
    for statement in (
        delete(Confirmation).where(Confirmation.outbox_id.in_(deliveries)),
        delete(Outbox).where(Outbox.report_id.in_(reports)),
        delete(AssessmentReport).where(AssessmentReport.feedback_id.in_(feedback)),
        delete(Feedback).where(Feedback.study_id == study_id),
        delete(Report).where(Report.study_id == study_id),
        delete(Revision).where(Revision.study_id == study_id),
        delete(Analysis).where(Analysis.instance_id.in_(instances)),
        delete(Shadow).where(Shadow.instance_id.in_(instances)),
        delete(Rejection).where(Rejection.study_id == study_id),
        delete(Instance).where(Instance.study_id == study_id),
        delete(Subject).where(Subject.study_id == study_id),
        delete(Event).where(Event.study_id == study_id),
        delete(Occurrence).where(Occurrence.study_id == study_id),
        delete(Notice).where(Notice.study_id == study_id),
        delete(Study).where(Study.id == study_id),
    ):
        session.execute(statement.execution_options(synchronize_session=False))


def _instances(session: Session, study_id: int) -> list[str]:
    rows = select(Instance.sop_instance_uid).where(Instance.study_id == study_id).distinct()
    return sorted(session.scalars(rows))
