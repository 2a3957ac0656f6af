"""Queue `deliver`: reports that wait for one destination, over one association."""

from datetime import timedelta

import structlog
from sqlalchemy import select, update

from service.core.completion import settle
from service.core.errors import DeliveryError, LeaseLost, PermanentDelivery
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
from service.core.states import DeliveryState
from service.core.tables import Outbox, Report
from worker.context import Context
from worker.scu import Answer, Sendable, Sent, answer_to, reason_for, send

_BATCH = 20
_LONGEST_BACKOFF_SECONDS = 300.0
_FEW = 5
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
                _finish(context, waiting.pop(0), sent)
        except DeliveryError as fault:
            for lease in waiting:
                _finish(context, lease, Sent(None, fault))
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
