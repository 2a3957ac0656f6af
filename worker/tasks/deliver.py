"""Queue `deliver`: reports that wait for one destination, over one association.

Before a report goes out the destination is asked how it files the study (`worker.tasks.identity`). One that
cannot be reached is left alone for a while (`service.core.circuits`); what it accepted is proven later
(`worker.tasks.confirm`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import structlog
from pydicom import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import Comprehensive3DSRStorage

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
    held_together,
    release,
    release_failed,
    renewed,
)
from service.core.ledger import now, record_event
from service.core.settlement import settle
from service.core.states import DeliveryState, Kind
from service.core.tables import Report
from worker.context import Context
from worker.peer import IDENTIFIERS, Answer, Sent, answer_to, reason_class, reason_for
from worker.tasks import backfill
from worker.tasks import batch as batches
from worker.tasks import confirm as proof
from worker.tasks.batch import Accepted, Batch, Delivery
from worker.tasks.connect import connect
from worker.tasks.fallback import fall_back
from worker.tasks.identity import correct

_BATCH = 50
_LONGEST_BACKOFF_SECONDS = 300.0
_FEW = 5
# Another process may have taken up a newer configuration than this one.
_PATIENCE = timedelta(seconds=60)
# Of a destination that accepts every context and looks afterwards; the second is PS3.18 I.2.2.
_NOT_SUPPORTED = (0x0122, 0xC122)
# What was accepted is written down together, not later than this: a death before that sends it once more.
_UNWRITTEN = timedelta(seconds=0.5)
_LAST_TAG = Tag("StudyInstanceUID")
_TAGS: list[BaseTag | int] = [*map(Tag, IDENTIFIERS), _LAST_TAG]
_log = structlog.get_logger()


def run(context: Context) -> None:
    """Send what waits for the destination that has waited longest, prove what was sent, then ask archives."""
    name, leases = circuits.claim_for_one_destination(context.ledger, DELIVER, _BATCH, context.settings)
    if leases:
        failpoint("deliver.claimed")
        _send_to(context, name, leases)
    proof.run(context)
    backfill.run(context)


def _send_to(context: Context, name: str, leases: list[Lease]) -> None:
    deliveries = batches.read(context, leases)
    destination = context.settings.destination(name)
    if destination is None:
        for delivery in deliveries:
            _give_back_or_park(context, name, delivery)
        return
    # What broke an association before goes last, so that it keeps nobody back.
    batch = Batch(context, destination, sorted(deliveries, key=lambda item: item.lease.attempts))
    with renewed(context.ledger, leases):
        try:
            fault = _send_batch(batch)
        except DeliveryError as error:
            fault = error
            for delivery in batch.waiting:
                with _named_in_logs(delivery):
                    _settle_one(batch, delivery, Sent(None, error, tried=False))
        except Exception as error:
            _log.exception("deliver.failed", destination=name)
            for delivery in (*batch.waiting, *(item.delivery for item in batch.accepted)):
                release_failed(context.ledger, delivery.lease, error)
            return
    if fault is not None and fault.retry_helps:
        circuits.failed(context.ledger, name, str(fault))
    else:
        circuits.reached(context.ledger, name)


def _give_back_or_park(context: Context, name: str, delivery: Delivery) -> None:
    """Park what goes to a destination that is not configured; a new report waits for who knows it."""
    lease = delivery.lease
    if now() - delivery.built_at < _PATIENCE:
        why = f"no destination {name} is configured here"
        release(context.ledger, lease, why, 2.0, attempts=lease.attempts - 1)
    else:
        gone = PermanentDelivery(f"no destination {name} is configured any more")
        _finish(context, name, delivery, Sent(None, gone))


def _send_batch(batch: Batch) -> DeliveryError | None:
    """Send every object that waits; return the fault that ended the association, if one did."""
    while True:
        try:
            return _send_over_one_association(batch)
        except Unanswered as fault:
            # After two of them it is asked no more (`worker.scu`).
            _log.warning("deliver.unanswered", destination=batch.destination.name, reason=str(fault))


def _send_over_one_association(batch: Batch) -> DeliveryError | None:
    items = [delivery.item for delivery in batch.waiting]
    if not items:
        return None
    fault: DeliveryError | None = None
    answered = False
    with connect(batch.context, batch.destination, items) as peer, _told(batch) as transfer:
        # What the site asks for is tried, and missed, even where it is not offered.
        confirm = batch.destination.confirm
        batch.proves = peer.proves if confirm is None else confirm != "none"
        try:
            while batch.waiting:
                delivery = batch.waiting[0]
                header = _header(delivery.item.path)
                with _named_in_logs(delivery):
                    if header is None or not correct(batch, peer, delivery, header):
                        sent = peer.store(delivery.item)
                        failpoint("deliver.answered")
                        if header is not None:
                            _tell(transfer, delivery, header, sent)
                        answered = answered or sent.status is not None
                        fault = sent.fault if sent.fault is not None and sent.fault.retry_helps else None
                        _settle_one(batch, delivery, sent)
                batch.waiting.pop(0)
                if batch.accepted and now() - batch.accepted[0].at > _UNWRITTEN:
                    _record(batch)
        finally:
            _record(batch)
    # Who answered for one object is not away, whatever another one did to the association.
    return None if answered else fault


def _header(path: Path) -> Dataset | None:
    """Return `IDENTIFIERS` and the study of an object; None without its file, which sending it will say."""
    try:
        with path.open("rb") as stream:
            return read_partial(
                stream, stop_when=lambda tag, *_: tag > _LAST_TAG, specific_tags=_TAGS, force=True
            )
    except OSError:
        return None


@contextmanager
def _named_in_logs(delivery: Delivery) -> Iterator[None]:
    ids = {"study_instance_uid": delivery.study_instance_uid, "outbox": delivery.lease.row_id}
    with structlog.contextvars.bound_contextvars(**ids):
        yield


@contextmanager
def _told(batch: Batch) -> Iterator[Transfer]:
    """Tell the audit trail, at the end of the association, what went over it."""
    destination = batch.destination
    name = destination.url if destination.is_dicomweb else destination.ae_title
    title = "" if destination.is_dicomweb else destination.ae_title
    transfer = batch.context.audit.sending(name, title, destination.host)
    try:
        yield transfer
    finally:
        transfer.write()


def _tell(transfer: Transfer, delivery: Delivery, header: Dataset, sent: Sent) -> None:
    if not sent.tried or (sent.status is None and isinstance(sent.fault, NotAccepted)):
        return  # nothing of it left this machine
    fault = "" if sent.status is not None and answer_to(sent.status) is Answer.ACCEPTED else _why(sent)
    patient = str(header.get("PatientID") or ""), str(header.get("IssuerOfPatientID") or "")
    # READ, since only the destination knows whether it held the object before (PS3.15 table A.5.3.7-1).
    study_instance_uid = str(header.get("StudyInstanceUID"))
    transfer.add(study_instance_uid, *patient, delivery.item.sop_class_uid, Action.READ, fault)


def _why(sent: Sent) -> str:
    return reason_for(sent.status) if sent.status is not None else str(sent.fault)


def _settle_one(batch: Batch, delivery: Delivery, sent: Sent) -> None:
    """Note what became of one delivery, or send the object in its other form."""
    context, destination, kind = batch.context, batch.destination, delivery.kind
    sop_class_uid = delivery.item.sop_class_uid
    if not isinstance(sent.fault, NotAccepted) and sent.status not in _NOT_SUPPORTED:
        if sent.status is not None and answer_to(sent.status) is Answer.ACCEPTED:
            batch.accepted.append(Accepted(delivery, sent.status, now()))
        else:
            _finish(context, destination.name, delivery, sent)
    elif sop_class_uid == Comprehensive3DSRStorage or kind == Kind.HEATMAP:
        _send_in_other_form(context, destination, delivery)
    elif kind == Kind.COMPREHENSIVE_SR and destination.sr_form == "3d":
        neither = "the destination accepts neither Comprehensive 3D SR nor Comprehensive SR"
        _finish(context, destination.name, delivery, Sent(None, NotAccepted(neither)))
    else:
        _finish(context, destination.name, delivery, sent)


def _send_in_other_form(context: Context, destination: Destination, delivery: Delivery) -> None:
    try:
        with context.ledger.read() as session:
            report = session.get(Report, delivery.report_id)
        if report is None:
            raise LeaseLost(f"deliver {delivery.lease.row_id}: the work is gone")
        fall_back(context, destination, delivery.lease, report)
    except LeaseLost as fault:
        _log.warning("deliver.lease_lost", reason=str(fault))
    except FileNotFoundError:
        gone = PermanentDelivery("the report's file is gone")
        _finish(context, destination.name, delivery, Sent(None, gone))
    except Exception as fault:
        _log.exception("deliver.no_other_form", outbox=delivery.lease.row_id)
        release_failed(context.ledger, delivery.lease, fault)


def _record(batch: Batch) -> None:
    """Write down what was accepted, in one transaction: each would cost as much as sending it."""
    if not batch.accepted:
        return
    name, accepted = batch.destination.name, {item.delivery.lease.row_id: item for item in batch.accepted}
    with batch.context.ledger.write() as session:
        found = held_together(session, [item.delivery.lease for item in batch.accepted])
        for row, study in found:
            item = accepted.pop(row.id)
            row.state, row.delivered_at = DeliveryState.DELIVERED, item.at
            row.last_status = item.status
            row.last_error = f"stored with status {item.status:04X}" if item.status else None
            tally.add(tally.DELIVERIES, name, session=session)
            waited = (item.at - item.delivery.built_at).total_seconds()
            tally.observe(tally.STAGE_SECONDS, waited, "deliver", session=session)
            record_event(session, study, "sent", f"{item.delivery.kind} to {name}")
        if batch.proves:
            confirmation.expect(session, [row for row, _ in found])
        settle(session, *dict.fromkeys(study for _, study in found))
    batch.accepted.clear()
    failpoint("deliver.recorded")
    for row_id in accepted:
        _log.warning("deliver.lease_lost", reason=f"deliver {row_id}: the work belongs to somebody else now")


def _finish(context: Context, name: str, delivery: Delivery, sent: Sent) -> None:
    """Write down that one delivery was not accepted: it is parked, or tried again later."""
    # Five tries are for a destination that answers: those it was away for do not count.
    lease, failures = delivery.lease, delivery.failures
    if sent.status is not None and answer_to(sent.status) is Answer.AGAIN_A_FEW_TIMES:
        failures += 1
    verdict, error = _verdict(sent, failures)
    if sent.tried:
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
            row.state, row.last_status, row.last_error = DeliveryState.PARKED, sent.status, error
            record_event(session, study, "parked", f"{delivery.kind} for {name}: {error}")
            settle(session, study)
    except LeaseLost as fault:
        _log.warning("deliver.lease_lost", reason=str(fault))


def _verdict(sent: Sent, failures: int) -> tuple[Answer, str]:
    if sent.status is None:
        assert sent.fault is not None
        return (Answer.AGAIN if sent.fault.retry_helps else Answer.PARK), str(sent.fault)
    answer = answer_to(sent.status)
    if answer is Answer.AGAIN_A_FEW_TIMES:
        answer = Answer.AGAIN if failures < _FEW else Answer.PARK
    return answer, reason_for(sent.status)
