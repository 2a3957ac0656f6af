"""From "the destination said yes" to "the destination has it".

A delivery that was answered with success gets a `Confirmation`; what proves it is storage commitment
(PS3.4 J.3), whose answer may come at any listener days later, or a query that finds the instance. An object
that turns out not to be there is sent again, and parked for a person when that happens too often.
"""

from collections.abc import Sequence
from datetime import timedelta

import structlog
from pydicom import Dataset
from sqlalchemy import delete, exists, func, select
from sqlalchemy.orm import Session

from service.core import tally
from service.core.ledger import Ledger, now, record_event
from service.core.settings import Settings
from service.core.settlement import settle, withdraw
from service.core.states import ConfirmationState, DeliveryState, Proof, StudyState
from service.core.tables import Confirmation, Outbox, Report, Study

# Sent so often, and never there: the next try would be no better.
_LOSSES = 3
# How long an object may be on its way into an archive that has accepted it.
PATIENCE = timedelta(hours=1)
_log = structlog.get_logger()

# Failure Reason (0008,1197), PS3.3 C.14.1.1: the archive does not have it, or has something else.
_NO_SUCH_INSTANCE, _CLASS_CONFLICT = 0x0112, 0x0119
_AFTER_A_FAILURE = timedelta(minutes=5)


def expect(session: Session, deliveries: Sequence[Outbox]) -> None:
    """Let the proof of deliveries that were just accepted be had."""
    session.execute(
        delete(Confirmation).where(Confirmation.outbox_id.in_([delivery.id for delivery in deliveries]))
    )
    moment = now()
    session.add_all(
        Confirmation(
            outbox_id=delivery.id,
            destination=delivery.destination,
            state=ConfirmationState.WAITING,
            until=moment + PATIENCE,
            ready_at=moment,
        )
        for delivery in deliveries
    )


_PROOFS = {Proof.COMMITMENT: "storage commitment", Proof.QUERY: "found by query"}


def confirm(session: Session, study: Study, confirmation: Confirmation, proof: Proof) -> None:
    """Write down that the destination holds the object; the study's row is locked by the caller."""
    delivery = confirmation.delivery
    confirmation.state, confirmation.proof, confirmation.last_error = ConfirmationState.DONE, proof, None
    if delivery.state != DeliveryState.DELIVERED:
        return  # sent again, parked or withdrawn meanwhile
    if delivery.delivered_at is not None:
        tally.since(tally.STAGE_SECONDS, delivery.delivered_at, "confirm", session=session)
    delivery.state, delivery.confirmed_at = DeliveryState.CONFIRMED, now()
    record_event(
        session, study, "confirmed", f"{delivery.report.kind} at {delivery.destination}: {_PROOFS[proof]}"
    )
    settle(session, study)


def never_finds(session: Session, destination: str) -> bool:
    """Return whether queries found nothing there yet, not even what was sent as often as makes sense.

    It may go through all that was ever sent there, so it is only asked about what is not found.
    """
    lost = exists().where(Outbox.destination == destination, Outbox.losses >= _LOSSES)
    found = exists().where(Confirmation.destination == destination, Confirmation.proof == Proof.QUERY)
    return bool(session.scalar(select(lost & ~found)))


def miss(session: Session, study: Study, confirmation: Confirmation, how: str) -> None:
    """Send an object again that the destination accepted and does not hold, or park it."""
    delivery = confirmation.delivery
    confirmation.state, confirmation.last_error = ConfirmationState.DONE, how
    if delivery.state not in (DeliveryState.DELIVERED, DeliveryState.CONFIRMED):
        return
    delivery.losses += 1
    delivery.confirmed_at = None
    earlier = delivery.report.revision < study.revision
    if study.state == StudyState.HELD or earlier or not delivery.report.path:
        withdraw(delivery, f"not there ({how}), and not to be sent any more")
        what = "not sent again"
        record_event(session, study, "missing", f"{delivery.report.kind} at {delivery.destination}: {what}")
        settle(session, study)
        return
    if delivery.losses < _LOSSES:
        delivery.state, delivery.ready_at = DeliveryState.PENDING, now()
        what = "sent again"
    else:
        delivery.state, what = DeliveryState.PARKED, "parked"
    delivery.last_error = (
        f"the destination answered success and does not hold the object ({how}), {delivery.losses} times"
    )
    _log.warning(
        "delivery.missing",
        study_instance_uid=study.study_instance_uid,
        outbox=delivery.id,
        destination=delivery.destination,
        then=what,
    )
    record_event(
        session, study, "missing", f"{delivery.report.kind} at {delivery.destination}: {how}; {what}"
    )
    if delivery.state == DeliveryState.PARKED:
        why = f"{delivery.report.kind} for {delivery.destination}: {delivery.last_error}"
        record_event(session, study, "parked", why)
    settle(session, study)


def give_up(session: Session, study: Study, confirmation: Confirmation, why: str | None) -> None:
    """Stop asking; with `why` a person is told, without it the destination just has no way to confirm."""
    confirmation.state, confirmation.last_error = ConfirmationState.GIVEN_UP, why
    if why:
        delivery = confirmation.delivery
        record_event(
            session, study, "unconfirmed", f"{delivery.report.kind} at {delivery.destination}: {why}"
        )
    settle(session, study)


def unconfirmed(session: Session) -> dict[str, int]:
    """Return how many deliveries of the last day each destination was asked about and did not confirm."""
    rows = session.execute(
        select(Confirmation.destination, func.count().label("deliveries"))
        .join(Outbox)
        .where(
            Confirmation.state == ConfirmationState.GIVEN_UP,
            Outbox.state == DeliveryState.DELIVERED,
            Outbox.delivered_at > now() - timedelta(days=1),
        )
        .group_by(Confirmation.destination)
    )
    return {row.destination: row.deliveries for row in rows}


def take_commitment(ledger: Ledger, settings: Settings, peer_ae_title: str, answer: Dataset) -> int:
    """Take the answer to a storage commitment and return the status for it.

    Parameters
    ----------
    peer_ae_title
        Who answers: nobody but the destination that was asked is heard.
    answer
        Event Information of the N-EVENT-REPORT (PS3.4 table J.3-2).

    Returns
    -------
    int
        0000, or 0115 (invalid argument value, PS3.7 10.1.1.1.8) for a transaction that is not ours.
    """
    transaction_uid = str(answer.get("TransactionUID") or "")
    committed = {
        str(item.get("ReferencedSOPInstanceUID")) for item in answer.get("ReferencedSOPSequence") or []
    }
    refused = {
        str(item.get("ReferencedSOPInstanceUID")): int(item.get("FailureReason") or 0)
        for item in answer.get("FailedSOPSequence") or []
    }
    with ledger.read() as session:
        asked = session.execute(
            select(Confirmation.id, Confirmation.destination, Report.study_id, Report.sop_instance_uid)
            .join(Outbox, Outbox.id == Confirmation.outbox_id)
            .join(Report, Report.id == Outbox.report_id)
            .where(Confirmation.transaction_uid == transaction_uid)
        ).all()
    heard = False
    for confirmation_id, name, study_id, sop_instance_uid in asked:
        destination = settings.destination(name)
        if destination is None or destination.ae_title != peer_ae_title:
            continue
        heard = True
        reason = refused.get(sop_instance_uid)
        # One transaction a study, whose row is locked first, as everywhere.
        with ledger.write() as session:
            study = session.get_one(Study, study_id, with_for_update=True)
            row = session.get(Confirmation, confirmation_id, with_for_update=True)
            if row is None or row.transaction_uid != transaction_uid:
                continue  # sent or asked anew meanwhile
            if sop_instance_uid in committed:
                _end_asking(row)
                confirm(session, study, row, Proof.COMMITMENT)
            elif reason in (_NO_SUCH_INSTANCE, _CLASS_CONFLICT):
                _end_asking(row)
                miss(session, study, row, f"storage commitment failed with {reason:04X}")
            elif reason is not None and row.state == ConfirmationState.WAITING:
                # A fault of the destination, not of the object: it is asked again.
                _end_asking(row)
                row.transaction_uid, row.ready_at = None, now() + _AFTER_A_FAILURE
                row.last_error = f"storage commitment failed with {reason:04X}"
    if not heard:
        _log.warning("commitment.not_ours", peer_ae_title=peer_ae_title)
    return 0x0000 if heard else 0x0115


def _end_asking(row: Confirmation) -> None:
    """End what is under way for it: the answer came before."""
    row.lease_token += 1
    row.lease_owner = row.lease_until = None
