"""What follows from the states of a study's parts: its own state once reported, and what needs attention."""

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import and_, case, or_, select
from sqlalchemy.orm import Session, contains_eager

from service.core import tally
from service.core.leases import FILE_GONE
from service.core.ledger import now, record_event
from service.core.results import Finding
from service.core.states import (
    DELIVERED_STATES,
    REPORTABLE_INSTANCES,
    UNFINISHED_INSTANCES,
    ConfirmationState,
    DeliveryState,
    InstanceState,
    RevisionState,
    StudyState,
)
from service.core.tables import Confirmation, Instance, Outbox, Report, Revision, Study

_BYTES_GONE = "the bytes of an image are gone from the data folder: send the study again"


def settle(session: Session, *studies: Study) -> None:
    """Set what follows from instances and deliveries: what needs attention, and the state once reported."""
    session.flush()
    ids = [study.id for study in studies]
    deliveries, troubles = deliveries_of(session, *ids), _troubles(session, ids)
    missed = unconfirmed(session, *ids)
    with session.no_autoflush:
        for study in studies:
            own = [item for item in deliveries if item.report.study_id == study.id]
            not_confirmed = [item for item in missed if item.delivery.report.study_id == study.id]
            study.attention = _attention(session, study, troubles.get(study.id, []), own, not_confirmed)
            _conclude(session, study, own)


def _conclude(session: Session, study: Study, deliveries: Sequence[Outbox]) -> None:
    """Set the state of a study that is reported by what became of its deliveries."""
    required = [
        item
        for item in deliveries
        if item.required
        and item.report.revision == study.revision
        # What is sent in its place counts instead of it.
        and item.state != DeliveryState.WITHDRAWN
    ]
    if study.wanted or not required:
        return  # what was given up is no longer among them
    if study.state not in (StudyState.REPORTED, StudyState.DELIVERED, StudyState.CONFIRMED):
        return
    if not all(item.state in DELIVERED_STATES for item in required):
        study.state = StudyState.REPORTED
        return
    if study.state == StudyState.REPORTED:
        study.state = StudyState.DELIVERED
        if study.delivered_at is None:
            study.delivered_at = now()
            _time(session, study, "delivered")
            record_event(session, study, "delivered", f"revision {study.revision}")
    if any(item.state != DeliveryState.CONFIRMED for item in required):
        study.state = StudyState.DELIVERED
    elif study.state == StudyState.DELIVERED:
        study.state = StudyState.CONFIRMED
        if study.confirmed_at is None:
            study.confirmed_at = now()
            _time(session, study, "confirmed")
            record_event(session, study, "confirmed", f"revision {study.revision}, by every destination")


def _time(session: Session, study: Study, until: str) -> None:
    """Count how long the first report of a study took; a later one, or a back-fill, had its own beginning."""
    if study.revision == 1 and study.backfill_id is None:
        tally.since(tally.STUDY_SECONDS, study.received_at, until, session=session)


def withdraw(delivery: Outbox, why: str) -> None:
    """Let a delivery that waits not happen; one that is under way is dropped by its token."""
    delivery.state, delivery.last_error = DeliveryState.WITHDRAWN, why
    delivery.lease_token += 1
    delivery.lease_owner = delivery.lease_until = None


def withdraw_revision(session: Session, study: Study, why: str) -> None:
    """Let a revision that waits be built no more; a conclusion takes its row up again."""
    newest = newest_revision(session, study)
    if newest is not None and newest.state == RevisionState.PENDING:
        newest.state, newest.last_error = RevisionState.FAILED, f"withdrawn: {why}"
        newest.lease_token += 1
        newest.lease_owner = newest.lease_until = None


def newest_revision(session: Session, study: Study) -> Revision | None:
    """Return the newest revision of a study's report, locked, or None."""
    return session.scalars(
        select(Revision)
        .where(Revision.study_id == study.id)
        .order_by(Revision.number.desc())
        .limit(1)
        .with_for_update()
    ).one_or_none()


def deliveries_of(session: Session, *study_ids: int) -> Sequence[Outbox]:
    """Return all deliveries of studies, the oldest first."""
    return session.scalars(
        select(Outbox)
        .join(Outbox.report)
        .where(Report.study_id.in_(study_ids))
        .order_by(Outbox.id)
        .options(contains_eager(Outbox.report))
    ).all()


def unconfirmed(session: Session, *study_ids: int) -> Sequence[Confirmation]:
    """Return the confirmations that were asked for and did not come."""
    return session.scalars(
        select(Confirmation)
        .join(Outbox)
        .join(Report)
        .where(
            Report.study_id.in_(study_ids),
            Outbox.state == DeliveryState.DELIVERED,
            Confirmation.state == ConfirmationState.GIVEN_UP,
        )
        .order_by(Confirmation.id)
    ).all()


def _troubles(session: Session, study_ids: Sequence[int]) -> dict[int, list[str]]:
    """Return by study what a person should know of its instances."""
    in_trouble = Instance.state.in_((InstanceState.QUARANTINED, InstanceState.FAILED))
    gone = and_(
        Instance.last_error == FILE_GONE,
        Instance.spool_path.is_not(None),
        Instance.state.in_((*UNFINISHED_INSTANCES, *REPORTABLE_INSTANCES)),
    )
    rows = session.execute(
        select(Instance.study_id, case((in_trouble, Instance.reason)), gone)
        .where(Instance.study_id.in_(study_ids), or_(in_trouble, gone))
        .order_by(Instance.id)
    )
    found: dict[int, list[str]] = defaultdict(list)
    lost: set[int] = set()
    for study_id, reason, is_gone in rows:
        if reason:
            found[study_id].append(reason)
        if is_gone:
            lost.add(study_id)
    for study_id in lost:
        found[study_id].append(_BYTES_GONE)
    return found


def _attention(
    session: Session,
    study: Study,
    troubles: Sequence[str],
    deliveries: Sequence[Outbox],
    not_confirmed: Sequence[Confirmation],
) -> str | None:
    """Return what a person should look at, or None."""
    reasons = [study.reason] if study.state == StudyState.HELD and study.reason else []
    reasons += [study.wanted] if study.wanted else []
    if study.finding == Finding.NOT_ANALYSED and _speaks_of_a_result(session, study):
        reasons.append(f"revision {study.revision} was reported and no longer holds: {study.result_reason}")
    reasons += troubles
    reasons += [
        f"{item.report.kind} parked for {item.destination}: {item.last_error}"
        for item in deliveries
        if item.state == DeliveryState.PARKED
    ]
    reasons += [
        f"{item.delivery.report.kind} at {item.destination} is not confirmed: {item.last_error}"
        for item in not_confirmed
        if item.last_error
    ]
    return "; ".join(dict.fromkeys(reasons)) or None


def _speaks_of_a_result(session: Session, study: Study) -> bool:
    """Return whether the newest revision that was reported names a finding."""
    reported = select(Revision.model_id).where(
        Revision.study_id == study.id, Revision.number == study.revision
    )
    return session.scalars(reported).first() is not None
