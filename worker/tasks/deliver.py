"""Queue `deliver`: reports that wait for one destination, over one association.

Before a report goes out the destination is asked how it files the study: when it names another patient or
order than the report does, the report is built anew (`_correct`). A destination that cannot be reached is
left alone for a while (`service.core.circuits`); what it accepted is proven later (`worker.tasks.confirm`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

import structlog
from pydicom import Dataset, dcmread
from pydicom.uid import Comprehensive3DSRStorage
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.core import circuits, confirmation, tally
from service.core.audit import Transfer
from service.core.audit_message import Action
from service.core.destination import Destination
from service.core.errors import DeliveryError, LeaseLost, NotAccepted, PermanentDelivery, Unanswered
from service.core.failpoints import failpoint
from service.core.leases import (
    DELIVER,
    Lease,
    backoff_seconds,
    held,
    leased,
    named_in_logs,
    release,
    release_failed,
    renewed,
)
from service.core.ledger import now, record_event
from service.core.settlement import settle, withdraw
from service.core.states import REPORTABLE_INSTANCES, DeliveryState, Kind, StudyState
from service.core.tables import Event, Instance, Outbox, Report, Revision, Study, Subject
from worker.context import Context
from worker.peer import IDENTIFIERS, Answer, Peer, Sendable, Sent, answer_to, reason_class, reason_for
from worker.tasks import confirm as proof
from worker.tasks.connect import connect
from worker.tasks.fallback import fall_back

_BATCH = 20
_LONGEST_BACKOFF_SECONDS = 300.0
_FEW = 5
_MOST_REBUILDS = 3
# Another process may have taken up a newer configuration than this one.
_PATIENCE = timedelta(seconds=60)
# Of a destination that accepts every context and looks afterwards; the second is PS3.18 I.2.2.
_NOT_SUPPORTED = (0x0122, 0xC122)
_log = structlog.get_logger()


class _AsItIs(Exception):
    """The report is to be sent as it was built."""


@dataclass
class _Batch:
    """What is sent over one association, and what the destination says of its studies."""

    context: Context
    destination: Destination
    waiting: list[Lease]
    proves: bool = False
    told: dict[str, Mapping[str, str] | None] = field(default_factory=dict)


def run(context: Context) -> None:
    """Send what waits for the destination that has waited longest, then prove what was sent."""
    name, leases = circuits.claim_for_one_destination(context.ledger, DELIVER, _BATCH, context.settings)
    if leases:
        failpoint("deliver.claimed")
        _send_to(context, name, leases)
    proof.run(context)


def _send_to(context: Context, name: str, leases: list[Lease]) -> None:
    destination = context.settings.destination(name)
    if destination is None:
        for lease in leases:
            with suppress(LeaseLost):
                _give_back_or_park(context, name, lease)
        return
    # What broke an association before goes last, so that it keeps nobody back.
    batch = _Batch(context, destination, sorted(leases, key=lambda lease: lease.attempts))
    with renewed(context.ledger, leases):
        try:
            fault = _send_batch(batch)
        except DeliveryError as error:
            fault = error
            for lease in batch.waiting:
                with suppress(LeaseLost), named_in_logs(context.ledger, lease):
                    _settle_one(batch, lease, Sent(None, error, tried=False))
        except Exception as error:
            _log.exception("deliver.failed", destination=name)
            for lease in batch.waiting:
                release_failed(context.ledger, lease, error)
            return
    if fault is not None and fault.retry_helps:
        circuits.failed(context.ledger, name, str(fault))
    else:
        circuits.reached(context.ledger, name)


def _give_back_or_park(context: Context, name: str, lease: Lease) -> None:
    """Park what goes to a destination that is not configured; a new report waits for who knows it."""
    with context.ledger.read() as session:
        age = now() - _report(session, lease).created_at
    if age < _PATIENCE:
        why = f"no destination {name} is configured here"
        release(context.ledger, lease, why, 2.0, attempts=lease.attempts - 1)
    else:
        gone = PermanentDelivery(f"no destination {name} is configured any more")
        _finish(context, lease, Sent(None, gone))


def _send_batch(batch: _Batch) -> DeliveryError | None:
    """Send every object that waits; return the fault that ended the association, if one did."""
    while True:
        try:
            return _send_over_one_association(batch)
        except Unanswered as fault:
            # After two of them it is asked no more (`worker.scu`).
            _log.warning("deliver.unanswered", destination=batch.destination.name, reason=str(fault))


def _send_over_one_association(batch: _Batch) -> DeliveryError | None:
    items = _sendables(batch)
    if not items:
        return None
    fault: DeliveryError | None = None
    answered = False
    with connect(batch.context, batch.destination, items) as peer, _told(batch) as transfer:
        # What the site asks for is tried, and missed, even where it is not offered.
        confirm = batch.destination.confirm
        batch.proves = peer.proves if confirm is None else confirm != "none"
        for item in items:
            lease = batch.waiting[0]
            with named_in_logs(batch.context.ledger, lease):
                try:
                    if not _correct(batch, peer, lease):
                        sent = peer.store(item)
                        failpoint("deliver.answered")
                        _tell(transfer, item, sent)
                        answered = answered or sent.status is not None
                        fault = sent.fault if sent.fault is not None and sent.fault.retry_helps else None
                        _settle_one(batch, lease, sent)
                except LeaseLost as lost:
                    _log.warning("deliver.lease_lost", reason=str(lost))
            batch.waiting.pop(0)
    # Who answered for one object is not away, whatever another one did to the association.
    return None if answered else fault


def _sendables(batch: _Batch) -> list[Sendable]:
    """Return what waits; what was erased meanwhile waits no more."""
    items, waiting = [], []
    for lease in batch.waiting:
        try:
            with batch.context.ledger.read() as session:
                report = _report(session, lease)
        except LeaseLost as lost:
            _log.warning("deliver.lease_lost", reason=str(lost))
            continue
        path = batch.context.spool.absolute(report.path)
        items.append(Sendable(path, report.sop_class_uid, report.transfer_syntax_uid))
        waiting.append(lease)
    batch.waiting = waiting
    return items


@contextmanager
def _told(batch: _Batch) -> Iterator[Transfer]:
    """Tell the audit trail, at the end of the association, what went over it."""
    destination = batch.destination
    name = destination.url if destination.is_dicomweb else destination.ae_title
    title = "" if destination.is_dicomweb else destination.ae_title
    transfer = batch.context.audit.sending(name, title, destination.host)
    try:
        yield transfer
    finally:
        transfer.write()


def _tell(transfer: Transfer, item: Sendable, sent: Sent) -> None:
    if not sent.tried or (sent.status is None and isinstance(sent.fault, NotAccepted)):
        return  # nothing of it left this machine
    try:
        header = dcmread(
            item.path, force=True, specific_tags=["StudyInstanceUID", "PatientID", "IssuerOfPatientID"]
        )
    except OSError:
        return  # nor did a file that is gone
    fault = "" if sent.status is not None and answer_to(sent.status) is Answer.ACCEPTED else _why(sent)
    patient = str(header.get("PatientID") or ""), str(header.get("IssuerOfPatientID") or "")
    # READ, since only the destination knows whether it held the object before (PS3.15 table A.5.3.7-1).
    transfer.add(str(header.get("StudyInstanceUID")), *patient, item.sop_class_uid, Action.READ, fault)


def _why(sent: Sent) -> str:
    return reason_for(sent.status) if sent.status is not None else str(sent.fault)


def _report(session: Session, lease: Lease) -> Report:
    report: Report = leased(session, lease).report
    return report


def _correct(batch: _Batch, peer: Peer, lease: Lease) -> bool:
    """Have the report built anew when the destination files its study under another patient or order.

    Returns
    -------
    bool
        Whether this delivery is settled: its bytes are not the ones to send.
    """
    with batch.context.ledger.read() as session:
        if leased(session, lease).as_built:
            return False  # a person has decided
        report = _report(session, lease)
        study_instance_uid = session.get_one(Study, report.study_id).study_instance_uid
    if report.kind == Kind.REJECTION:
        return False  # it names what the destination holds, under the patient of that
    if study_instance_uid not in batch.told:
        batch.told[study_instance_uid] = peer.study(study_instance_uid)
    told = batch.told[study_instance_uid]
    try:
        header = dcmread(
            batch.context.spool.absolute(report.path), force=True, specific_tags=list(IDENTIFIERS)
        )
    except OSError:
        return False  # said when it is sent
    if not told:
        return _is_foreign(batch, lease, header)
    differing = [
        keyword
        for keyword in IDENTIFIERS
        if keyword in told and told[keyword] != str(header.get(keyword) or "").strip()
    ]
    if not differing:
        return False
    if differing == ["AccessionNumber"]:  # the same patient: our spelling of the name is the images' own
        told = {"AccessionNumber": told["AccessionNumber"]}
    return _build_anew(batch, lease, told, differing)


def _build_anew(batch: _Batch, lease: Lease, told: Mapping[str, str], differing: list[str]) -> bool:
    """Withdraw what waits for this destination of the study, and open a revision that says what it told."""
    name, attributes = batch.destination.name, " and ".join(differing)
    try:
        with batch.context.ledger.write() as session:
            row, study = held(session, lease)
            report = session.get_one(Report, row.report_id)
            subject = _subject(session, study)
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
                _park_for_identity(session, study, row, why)
                return True
            elif _rebuilds(session, study) >= _MOST_REBUILDS:
                why = f"it names another {attributes} each time it is asked"
                _park_for_identity(session, study, row, why)
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


def _is_foreign(batch: _Batch, lease: Lease, header: Dataset) -> bool:
    """Park a report that names the patient as another archive does: nobody knows whether that holds here.

    Returns
    -------
    bool
        Whether it is parked.
    """
    with batch.context.ledger.read() as session:
        study = session.get_one(Study, _report(session, lease).study_id)
        subject = _subject(session, study)
        if subject is None or not subject.told or subject.told_by == batch.destination.name:
            return False
        told_by, told = subject.told_by, subject.told.get("PatientID", subject.patient_id)
        if told == subject.patient_id or told != str(header.get("PatientID") or "").strip():
            return False  # built for the patient who was received
    try:
        with batch.context.ledger.write() as session:
            row, study = held(session, lease)
            why = f"the patient is named as at {told_by}; how this destination files the study is unknown"
            _park_for_identity(session, study, row, why)
    except LeaseLost as fault:
        _log.warning("deliver.lease_lost", reason=str(fault))
    return True


def _park_for_identity(session: Session, study: Study, row: Outbox, why: str) -> None:
    row.state = DeliveryState.PARKED
    row.last_error = f"identity: {why}"
    tally.add(tally.DELIVERY_FAILURES, row.destination, "identity", session=session)
    record_event(session, study, "parked", f"{row.report.kind} for {row.destination}: {row.last_error}")
    settle(session, study)


def _rebuilds(session: Session, study: Study) -> int:
    """Return how often the study was built anew because an archive said so."""
    told = select(func.count()).where(Event.study_id == study.id, Event.kind == "identity")
    return session.scalar(told) or 0


def _subject(session: Session, study: Study) -> Subject | None:
    """Return the patient of a study that is reported: it has one, or it would be held."""
    return session.scalars(
        select(Subject)
        .join(Instance)
        .where(Instance.study_id == study.id, Instance.state.in_(REPORTABLE_INSTANCES))
        .order_by(Instance.id)
        .limit(1)
        .with_for_update()
    ).first()


def _settle_one(batch: _Batch, lease: Lease, sent: Sent) -> None:
    """Write down what became of one delivery, or send the object in its other form."""
    context, destination = batch.context, batch.destination
    with context.ledger.read() as session:
        report = _report(session, lease)
    if not isinstance(sent.fault, NotAccepted) and sent.status not in _NOT_SUPPORTED:
        _finish(context, lease, sent, proves=batch.proves)
    elif report.sop_class_uid == Comprehensive3DSRStorage or report.kind == Kind.HEATMAP:
        try:
            fall_back(context, destination, lease, report)
        except LeaseLost as fault:
            _log.warning("deliver.lease_lost", reason=str(fault))
        except FileNotFoundError:
            _finish(context, lease, Sent(None, PermanentDelivery("the report's file is gone")))
        except Exception as fault:
            _log.exception("deliver.no_other_form", outbox=lease.row_id)
            release_failed(context.ledger, lease, fault)
    elif report.kind == Kind.COMPREHENSIVE_SR and destination.sr_form == "3d":
        neither = "the destination accepts neither Comprehensive 3D SR nor Comprehensive SR"
        _finish(context, lease, Sent(None, NotAccepted(neither)))
    else:
        _finish(context, lease, sent)


def _finish(context: Context, lease: Lease, sent: Sent, *, proves: bool = False) -> None:
    """Write down what became of one delivery: done, parked, or tried again later.

    `proves`: whether what is accepted is to be confirmed.
    """
    # Five tries are for a destination that answers: those it was away for do not count.
    with context.ledger.read() as session:
        failures: int = leased(session, lease).failures
    if sent.status is not None and answer_to(sent.status) is Answer.AGAIN_A_FEW_TIMES:
        failures += 1
    verdict, error = _verdict(sent, failures)
    if sent.tried and verdict is not Answer.ACCEPTED:
        with context.ledger.read() as session:
            name = leased(session, lease).destination
        tally.add(tally.DELIVERY_FAILURES, name, reason_class(sent))
    if verdict is Answer.AGAIN:
        _log.warning("deliver.again", outbox=lease.row_id, reason=error, attempts=lease.attempts)
        answer = {} if sent.status is None else {"last_status": sent.status, "failures": failures}
        # What was not even tried waits for the destination alone (`service.core.circuits`).
        delay = backoff_seconds(lease.attempts, _LONGEST_BACKOFF_SECONDS) if sent.tried else 0.0
        started = lease.attempts if sent.tried else lease.attempts - 1
        release(context.ledger, lease, error, delay, attempts=started, **answer)
        return
    try:
        with context.ledger.write() as session:
            row, study = held(session, lease)
            report = session.get_one(Report, row.report_id)
            row.last_status, row.last_error = sent.status, error or None
            if verdict is Answer.ACCEPTED:
                row.state, row.delivered_at = DeliveryState.DELIVERED, now()
                tally.add(tally.DELIVERIES, row.destination, session=session)
                tally.since(tally.STAGE_SECONDS, report.created_at, "deliver", session=session)
                record_event(session, study, "sent", f"{report.kind} to {row.destination}")
                if proves:
                    confirmation.expect(session, row)
            else:
                row.state = DeliveryState.PARKED
                record_event(session, study, "parked", f"{report.kind} for {row.destination}: {error}")
            settle(session, study)
        failpoint("deliver.recorded")
    except LeaseLost as fault:
        _log.warning("deliver.lease_lost", reason=str(fault))


def _verdict(sent: Sent, failures: int) -> tuple[Answer, str]:
    if sent.status is None:
        assert sent.fault is not None
        return (Answer.AGAIN if sent.fault.retry_helps else Answer.PARK), str(sent.fault)
    answer = answer_to(sent.status)
    if answer is Answer.ACCEPTED:
        return answer, "" if sent.status == 0 else f"stored with status {sent.status:04X}"
    if answer is Answer.AGAIN_A_FEW_TIMES:
        answer = Answer.AGAIN if failures < _FEW else Answer.PARK
    return answer, reason_for(sent.status)
