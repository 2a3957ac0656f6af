"""How long the files of a study are kept: received bytes, decoded films, overlays and built reports.

A study that was delivered and confirmed loses them after HILUM_RETAIN_DAYS, and the oldest such studies lose
them earlier when the disk fills. Any other study (failed, parked, held, undeliverable) loses them after
HILUM_RETAIN_UNFINISHED_DAYS, lest one dead destination fill the disk; what was given up is said. A study's
age counts from the last thing that happened to it, except that it was sent again unchanged.

Results, UIDs of reports and events stay in the ledger; of the patient a keyed hash stays.
"""

import threading
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import structlog
from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import Session

from service.core.audit import Audit
from service.core.failpoints import failpoint
from service.core.ledger import Ledger, now, record_event
from service.core.removal import (
    Removed,
    files_of,
    forget_files,
    remove_files,
    shown_bytes,
    size_of,
    stop_work,
    whose,
)
from service.core.settings import Settings
from service.core.settlement import settle
from service.core.spool import Spool
from service.core.states import (
    UNFINISHED_INSTANCES,
    ConfirmationState,
    DeliveryState,
    RevisionState,
    StudyState,
)
from service.core.tables import Confirmation, Event, Instance, Outbox, Report, Revision, Study

RETENTION = "retention"
# A round is stopped between two studies; the next one goes on.
_MOST_A_ROUND = 500
_REPORTED = (StudyState.REPORTED, StudyState.DELIVERED, StudyState.CONFIRMED)
_log = structlog.get_logger()


class Cause(StrEnum):
    """Why the files of a study go."""

    AGE = "age"
    DISK = "disk"
    LIMIT = "limit"


@dataclass(frozen=True)
class Due:
    """A study whose files may go."""

    study_id: int
    study_instance_uid: str
    received_at: datetime
    cause: Cause


class Retention:
    """Removes the files whose time has come."""

    def __init__(self, ledger: Ledger, spool: Spool, settings: Settings) -> None:
        self._ledger = ledger
        self._audit = Audit(settings, "retention")
        self._spool = spool
        self._settings = settings

    def round(self, stopped: threading.Event, most: int = _MOST_A_ROUND) -> Removed:
        """Go on with what was begun, then remove what is due, up to `most` studies or until `stopped`.

        Raises
        ------
        SQLAlchemyError, OSError
            When the ledger or a file cannot be written now.
        """
        removed = Removed()
        for study_id in self._begun():
            removed += self._finish(study_id)
        for _ in range(most):
            due = self.due(1)
            if not due or stopped.is_set():
                break
            removed += self.remove(due[0])
        return removed

    def all_due(self) -> Removed:
        """Remove everything that is due."""
        removed = self.round(threading.Event())
        while self.due(1):
            removed += self.round(threading.Event())
        return removed

    def due(self, most: int) -> Sequence[Due]:
        """Return up to `most` studies whose files go next, those over their age first."""
        room = self._spool.free_bytes() - self._settings.free_bytes_to_keep
        found: list[Due] = []
        with self._ledger.read() as session:
            for cause in Cause:
                if cause is Cause.DISK and room >= 0:
                    continue
                rows = session.execute(
                    select(Study.id, Study.study_instance_uid, Study.received_at)
                    .where(self._condition(cause), Study.id.not_in([due.study_id for due in found]))
                    .order_by(Study.received_at)
                    .limit(most - len(found))
                )
                for row in rows:
                    found.append(Due(*row, cause))
                    if cause is Cause.DISK:
                        room += size_of(self._spool, files_of(session, row.id)).bytes
                        if room >= 0:
                            break
        return found

    def size(self, due: Due) -> Removed:
        """Return how much would go."""
        with self._ledger.read() as session:
            return size_of(self._spool, files_of(session, due.study_id))

    def remove(self, due: Due) -> Removed:
        """Remove the files of a study, unless it is not due any more."""
        with self._ledger.write() as session:
            study = session.get(Study, due.study_id, with_for_update=True)
            still = select(Study.id).where(Study.id == due.study_id, self._condition(due.cause))
            if study is None or session.scalars(still).first() is None:
                return Removed()
            age = (now() - study.received_at).total_seconds() / 86400
            why = "because the disk is nearly full" if due.cause is Cause.DISK else f"after {age:.0f} days"
            self._mark(session, study, f"its files were removed {why}", due.cause is Cause.LIMIT)
        failpoint("retention.marked")
        return self._finish(due.study_id)

    def forget_removed(self, missing: Set[str]) -> int:
        """Let studies go that are done and whose files are gone already; return how many.

        `missing` are paths that the ledger names and that are not there: a ledger was restored that is older
        than their removal.
        """
        with self._ledger.read() as session:
            done = select(Study.id).where(_finished())
            named = select(Instance.study_id, Instance.spool_path).where(Instance.study_id.in_(done))
            found = {study_id for study_id, path in session.execute(named) if path in missing}
        for study_id in found:
            with self._ledger.write() as session:
                study = session.get_one(Study, study_id, with_for_update=True)
                self._mark(session, study, "its files were removed before the ledger was restored", False)
            self._finish(study_id)
        return len(found)

    def oldest(self) -> tuple[datetime | None, datetime | None]:
        """Return when the oldest study with files came that is done, and the oldest that is not."""
        with self._ledger.read() as session:
            done, others = (
                session.scalar(select(func.min(Study.received_at)).where(condition))
                for condition in (_finished(), _has_files() & ~_finished())
            )
        return done, others

    def _begun(self) -> Sequence[int]:
        with self._ledger.read() as session:
            return session.scalars(select(Study.id).where(Study.removing == RETENTION)).all()

    def _condition(self, cause: Cause) -> ColumnElement[bool]:
        if cause is Cause.DISK:
            holds = exists().where(Instance.study_id == Study.id, Instance.spool_path.is_not(None))
            return _finished() & holds & ~_waits_for_delivery()
        if cause is Cause.AGE:
            return _finished() & _untouched_for(self._settings.retain_days)
        return _has_files() & _untouched_for(self._settings.retain_unfinished_days)

    def _mark(self, session: Session, study: Study, why: str, given_up: bool) -> None:
        """Say that the files go, and let nobody begin anything that needs them."""
        trouble = [study.reason or study.attention or f"it stayed {study.state}"] if given_up else []
        undone = [*trouble, *stop_work(session, study, why)]
        study.removing, study.expired_at = RETENTION, now()
        if study.state in (StudyState.RECEIVING, StudyState.ANALYSING):
            study.state, study.reason = StudyState.FAILED, why
        if undone:
            study.wanted = f"given up, {why}: {'; '.join(dict.fromkeys(undone))}"[:2000]
            record_event(session, study, "given_up", study.wanted)
            _log.warning(
                "retention.given_up",
                study_instance_uid=study.study_instance_uid,
                state=study.state,
                undone=len(undone),
            )
        else:
            record_event(session, study, "expired", why)
        settle(session, study)

    def _finish(self, study_id: int) -> Removed:
        with self._ledger.read() as session:
            study_instance_uid = session.get_one(Study, study_id).study_instance_uid
            paths = files_of(session, study_id)
            told = whose(session, study_id)
        removed = remove_files(self._spool, paths)
        failpoint("retention.files_removed")
        self._audit.study_deleted(study_instance_uid, *told)
        with self._ledger.write() as session:
            study = session.get(Study, study_id, with_for_update=True)
            if study is None or study.removing != RETENTION:
                return removed  # another scheduler was quicker, or it is erased
            forget_files(session, study)
            study.removing = None
            settle(session, study)
        failpoint("retention.forgotten")
        _log.info(
            "retention.removed",
            study_instance_uid=study.study_instance_uid,
            files=removed.files,
            size=shown_bytes(removed.bytes),
        )
        return removed


def _has_files() -> ColumnElement[bool]:
    return Study.expired_at.is_(None) & Study.removing.is_(None)


def _finished() -> ColumnElement[bool]:
    """Return the condition for studies that nobody waits for.

    Every required destination has confirmed its newest revision, or has no way to and answered success;
    without one it is reported. Nothing of it asks for a person.
    """
    required = (
        exists()
        .where(
            Outbox.report_id == Report.id,
            Report.study_id == Study.id,
            Report.revision == Study.revision,
            Outbox.required,
            Outbox.state.not_in((DeliveryState.CONFIRMED, DeliveryState.WITHDRAWN)),
            (Outbox.state != DeliveryState.DELIVERED)
            | exists().where(
                Confirmation.outbox_id == Outbox.id, Confirmation.state == ConfirmationState.WAITING
            ),
        )
        .correlate(Study)
    )
    return (
        _has_files()
        & Study.state.in_(_REPORTED)
        & Study.due_at.is_(None)
        & Study.attention.is_(None)
        & ~required
        & ~exists().where(Instance.study_id == Study.id, Instance.state.in_(UNFINISHED_INSTANCES))
        & ~exists().where(Revision.study_id == Study.id, Revision.state == RevisionState.PENDING)
    )


def _waits_for_delivery() -> ColumnElement[bool]:
    return exists().where(
        Outbox.report_id == Report.id,
        Report.study_id == Study.id,
        Outbox.state == DeliveryState.PENDING,
    )


def _untouched_for(days: float) -> ColumnElement[bool]:
    before = now() - timedelta(days=days)
    # The first condition is implied by the second, and has an index.
    return (Study.received_at < before) & ~exists().where(
        Event.study_id == Study.id, Event.at >= before, Event.kind != "duplicate"
    )
