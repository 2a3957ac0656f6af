"""Whether a destination files a study as its report does: under the same patient and order.

Where it does not, the report is built anew with what the destination says; where nobody can know, it waits
for a person.
"""

from collections.abc import Mapping

import structlog
from pydicom import Dataset
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.core import tally
from service.core.errors import LeaseLost
from service.core.leases import held
from service.core.ledger import now, record_event
from service.core.settlement import settle, withdraw
from service.core.states import REPORTABLE_INSTANCES, DeliveryState, Kind, StudyState
from service.core.tables import Event, Instance, Outbox, Report, Revision, Study, Subject
from worker.peer import IDENTIFIERS, Peer
from worker.tasks.batch import Batch, Delivery

_MOST_REBUILDS = 3
_log = structlog.get_logger()


class _AsItIs(Exception):
    """The report is to be sent as it was built."""


def correct(batch: Batch, peer: Peer, delivery: Delivery, header: Dataset) -> bool:
    """Have a report built anew when the destination files its study under another patient or order.

    Parameters
    ----------
    header
        `IDENTIFIERS` of the object.

    Returns
    -------
    bool
        Whether this delivery is settled: its bytes are not the ones to send.
    """
    if delivery.as_built:
        return False  # a person has decided
    if delivery.kind in (Kind.REJECTION, Kind.ASSESSMENT):
        return False  # it names what the destination holds, under the patient of that
    if delivery.study_instance_uid not in batch.told:
        batch.told[delivery.study_instance_uid] = peer.study(delivery.study_instance_uid)
    told = batch.told[delivery.study_instance_uid]
    if not told:
        return _is_foreign(batch, delivery, header)
    differing = [
        keyword
        for keyword in IDENTIFIERS
        if keyword in told and told[keyword] != str(header.get(keyword) or "").strip()
    ]
    if not differing:
        return False
    if differing == ["AccessionNumber"]:  # the same patient: our spelling of the name is the images' own
        told = {"AccessionNumber": told["AccessionNumber"]}
    return _build_anew(batch, delivery, told, differing)


def _build_anew(batch: Batch, delivery: Delivery, told: Mapping[str, str], differing: list[str]) -> bool:
    """Withdraw what waits for this destination of the study, and open a revision that says what it told."""
    name, attributes = batch.destination.name, " and ".join(differing)
    try:
        with batch.context.ledger.write() as session:
            row, study = held(session, delivery.lease)
            report = session.get_one(Report, row.report_id)
            subject = _subject(session, study.id)
            if subject is None:
                raise _AsItIs
            if subject.told == dict(told):
                built = session.scalars(
                    select(Revision.header_revision).where(
                        Revision.study_id == study.id, Revision.number == report.revision
                    )
                ).one_or_none()
                if built == study.header_revision:
                    raise _AsItIs  # as near as the objects can say it
            elif subject.told_by not in (None, name):
                why = f"it files the study under another {attributes} than {subject.told_by} does"
                _park(session, study, row, why)
                return True
            elif _rebuilds(session, study) >= _MOST_REBUILDS:
                why = f"it names another {attributes} each time it is asked"
                _park(session, study, row, why)
                return True
            else:
                subject.told, subject.told_by = dict(told), name
                study.header_revision += 1
                record_event(
                    session,
                    study,
                    "identity",
                    f"{name} files the study under another {attributes}: built anew",
                )
            withdraw(row, f"built anew: the destination files the study under another {attributes}")
            study.due_at = now()
            if study.state != StudyState.HELD:
                study.state = StudyState.RECEIVING
            settle(session, study)
    except _AsItIs:
        return False  # rolled back, so that the lease is kept
    except LeaseLost as fault:
        _log.warning("deliver.lease_lost", reason=str(fault))
    return True


def _is_foreign(batch: Batch, delivery: Delivery, header: Dataset) -> bool:
    """Park a report that names the patient as another archive does: nobody knows whether that holds here.

    Returns
    -------
    bool
        Whether it is parked.
    """
    if not delivery.told:
        return False
    with batch.context.ledger.read() as session:
        subject = _subject(session, delivery.study_id)
    if subject is None or not subject.told or subject.told_by == batch.destination.name:
        return False
    told_by, told = subject.told_by, subject.told.get("PatientID", subject.patient_id)
    if told == subject.patient_id or told != str(header.get("PatientID") or "").strip():
        return False  # built for the patient who was received
    try:
        with batch.context.ledger.write() as session:
            row, study = held(session, delivery.lease)
            why = f"the patient is named as at {told_by}; how this destination files the study is unknown"
            _park(session, study, row, why)
    except LeaseLost as fault:
        _log.warning("deliver.lease_lost", reason=str(fault))
    return True


def _park(session: Session, study: Study, row: Outbox, why: str) -> None:
    row.state = DeliveryState.PARKED
    row.last_error = f"identity: {why}"
    tally.add(tally.DELIVERY_FAILURES, row.destination, "identity", session=session)
    record_event(session, study, "parked", f"{row.report.kind} for {row.destination}: {row.last_error}")
    settle(session, study)


def _rebuilds(session: Session, study: Study) -> int:
    """Return how often the study was built anew because an archive said so."""
    told = select(func.count()).where(Event.study_id == study.id, Event.kind == "identity")
    return session.scalar(told) or 0


def _subject(session: Session, study_id: int) -> Subject | None:
    """Return the patient of a study that is reported: it has one, or it would be held."""
    return session.scalars(
        select(Subject)
        .join(Instance)
        .where(Instance.study_id == study_id, Instance.state.in_(REPORTABLE_INSTANCES))
        .order_by(Instance.id)
        .limit(1)
        .with_for_update()
    ).first()
