"""Queue `deliver`: reports that wait for one destination, over one association.

A destination that rejects Comprehensive 3D SR gets the same report as Comprehensive SR, and so do the next
studies from the start (`service.core.refusals`).
"""

import hashlib
from datetime import timedelta

import structlog
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.core.completion import settle, withdraw
from service.core.errors import DeliveryError, LeaseLost, NotAccepted, PermanentDelivery
from service.core.failpoints import failpoint
from service.core.leases import (
    DELIVER,
    Lease,
    backoff_seconds,
    claim,
    held,
    ready,
    release,
    release_failed,
    renewed,
)
from service.core.ledger import now, record_event
from service.core.refusals import remember
from service.core.settings import Destination
from service.core.states import DeliveryState, Kind
from service.core.tables import Model, Outbox, Report, Revision
from worker.context import Context, discarding
from worker.scu import Answer, Sendable, Sent, answer_to, reason_for, send
from worker.tasks.documents import as_comprehensive, earlier_documents, predecessors

_BATCH = 20
_LONGEST_BACKOFF_SECONDS = 300.0
_FEW = 5
_SOP_CLASS_NOT_SUPPORTED = 0x0122  # of a destination that accepts every context and looks afterwards
_log = structlog.get_logger()


def run(context: Context) -> None:
    """Send what waits for the destination that has waited longest."""
    with context.ledger.read() as session:
        name = session.scalars(
            select(Outbox.destination).where(ready(DELIVER)).order_by(Outbox.ready_at, Outbox.id).limit(1)
        ).first()
    if name is None:
        return
    leases = claim(context.ledger, DELIVER, _BATCH, Outbox.destination == name)
    if not leases:
        return
    failpoint("deliver.claimed")
    destination = context.settings.destination(name)
    if destination is None:
        for lease in leases:
            _finish(
                context, lease, Sent(None, PermanentDelivery(f"no destination {name} is configured any more"))
            )
        return
    with renewed(context.ledger, leases):
        waiting = list(leases)
        try:
            for sent in send(
                [_sendable(context, lease) for lease in leases],
                calling_ae_title=context.settings.ae_title,
                called_ae_title=destination.ae_title,
                host=destination.host,
                port=destination.port,
            ):
                failpoint("deliver.answered")
                _settle_one(context, destination, waiting.pop(0), sent)
        except DeliveryError as fault:
            for lease in waiting:
                _settle_one(context, destination, lease, Sent(None, fault))
            if fault.retry_helps:
                _put_off(context, name, backoff_seconds(leases[0].attempts, _LONGEST_BACKOFF_SECONDS))
        except Exception as fault:
            _log.exception("deliver.failed", destination=name)
            for lease in waiting:
                release_failed(context.ledger, lease, fault)


def _put_off(context: Context, name: str, seconds: float) -> None:
    """Let everything for a destination that is away wait, so that it takes no turn from the others."""
    later = now() + timedelta(seconds=seconds)
    with context.ledger.write() as session:
        session.execute(
            update(Outbox)
            .where(
                Outbox.destination == name,
                Outbox.state == DeliveryState.PENDING,
                Outbox.lease_until.is_(None),
                Outbox.ready_at < later,
            )
            .values(ready_at=later)
            .execution_options(synchronize_session=False)
        )


def _sendable(context: Context, lease: Lease) -> Sendable:
    with context.ledger.read() as session:
        report = session.get_one(Report, session.get_one(Outbox, lease.row_id).report_id)
        return Sendable(context.spool.absolute(report.path), report.sop_class_uid, report.transfer_syntax_uid)


def _settle_one(context: Context, destination: Destination, lease: Lease, sent: Sent) -> None:
    """Write down what became of one delivery, or send the report in its other form."""
    with context.ledger.read() as session:
        report = session.get_one(Report, session.get_one(Outbox, lease.row_id).report_id)
    if not isinstance(sent.fault, NotAccepted) and sent.status != _SOP_CLASS_NOT_SUPPORTED:
        _finish(context, lease, sent)
    elif report.sop_class_uid == Comprehensive3DSRStorage:
        try:
            _fall_back(context, destination, lease, report)
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


def _fall_back(context: Context, destination: Destination, lease: Lease, report: Report) -> None:
    """Send the report as Comprehensive SR instead; a destination that was offered it before has it made."""
    installation = context.ledger.installation()
    with context.ledger.read() as session:
        earlier = earlier_documents(session, report.study_id, report.revision)
        sha256 = session.scalars(
            select(Model.sha256)
            .join(Revision)
            .where(Revision.study_id == report.study_id, Revision.number == report.revision)
        ).one()
    other = as_comprehensive(
        dcmread(context.spool.absolute(report.path)),
        installation,
        sha256,
        predecessors(earlier, Kind.COMPREHENSIVE_SR),
    )
    path = context.spool.write(
        "reports", ".dcm", lambda stream: other.save_as(stream, enforce_file_format=True)
    )
    content = context.spool.absolute(path).read_bytes()
    remember(context.ledger, destination)
    failpoint("deliver.form_written")
    why = "sent as Comprehensive SR instead: the destination does not accept Comprehensive 3D SR"
    with discarding(context.spool, path), context.ledger.write() as session:
        row, study = held(session, lease)
        made = _comprehensive(session, report)
        if made is None:
            made = Report(
                study_id=report.study_id,
                kind=Kind.COMPREHENSIVE_SR,
                revision=report.revision,
                part=report.part,
                sop_instance_uid=other.SOPInstanceUID,
                sop_class_uid=other.SOPClassUID,
                series_instance_uid=other.SeriesInstanceUID,
                transfer_syntax_uid=other.file_meta.TransferSyntaxUID,
                path=path,
                digest=hashlib.sha256(content).hexdigest(),
                size=len(content),
                created_at=now(),
            )
            session.add(made)
            session.flush()
        session.add(
            Outbox(
                destination=row.destination,
                report_id=made.id,
                required=row.required,
                state=DeliveryState.PENDING,
                ready_at=now(),
            )
        )
        withdraw(row, why)
        record_event(session, study, "other_form", f"{report.kind} for {row.destination}: {why}")
        settle(session, study)
    failpoint("deliver.form_recorded")
    if made.path != path:
        context.spool.remove(path)  # another destination had it made


def _comprehensive(session: Session, report: Report) -> Report | None:
    """Return the Comprehensive SR of the same revision, when there is one."""
    return session.scalars(
        select(Report).where(
            Report.study_id == report.study_id,
            Report.kind == Kind.COMPREHENSIVE_SR,
            Report.revision == report.revision,
            Report.part == report.part,
        )
    ).one_or_none()


def _finish(context: Context, lease: Lease, sent: Sent) -> None:
    """Write down what became of one delivery: done, parked, or tried again later."""
    with context.ledger.read() as session:
        answered_before = session.get_one(Outbox, lease.row_id).last_status is not None
    # Five tries are for a destination that answers: those it was away for do not count.
    attempts = lease.attempts if answered_before or sent.status is None else 1
    verdict, error = _verdict(sent, attempts)
    if verdict is Answer.AGAIN:
        _log.warning("deliver.again", outbox=lease.row_id, reason=error, attempts=attempts)
        delay = backoff_seconds(attempts, _LONGEST_BACKOFF_SECONDS)
        answer = {} if sent.status is None else {"last_status": sent.status}
        release(context.ledger, lease, error, delay, attempts=attempts, **answer)
        return
    try:
        with context.ledger.write() as session:
            row, study = held(session, lease)
            report = session.get_one(Report, row.report_id)
            row.last_status, row.last_error = sent.status, error or None
            if verdict is Answer.ACCEPTED:
                row.state, row.delivered_at = DeliveryState.DELIVERED, now()
                record_event(session, study, "sent", f"{report.kind} to {row.destination}")
            else:
                row.state = DeliveryState.PARKED
                record_event(session, study, "parked", f"{report.kind} for {row.destination}: {error}")
            settle(session, study)
        failpoint("deliver.recorded")
    except LeaseLost as fault:
        _log.warning("deliver.lease_lost", reason=str(fault))


def _verdict(sent: Sent, attempts: int) -> tuple[Answer, str]:
    if sent.status is None:
        assert sent.fault is not None
        return (Answer.AGAIN if sent.fault.retry_helps else Answer.PARK), str(sent.fault)
    answer = answer_to(sent.status)
    if answer is Answer.ACCEPTED:
        return answer, "" if sent.status == 0 else f"stored with status {sent.status:04X}"
    if answer is Answer.AGAIN_A_FEW_TIMES:
        answer = Answer.AGAIN if attempts < _FEW else Answer.PARK
    return answer, reason_for(sent.status)
