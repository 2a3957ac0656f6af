"""The second half of queue `deliver`: whether destinations hold what they accepted.

Storage commitment where it is offered (PS3.4 J.3), and else a query for each instance. An object that is not
there may be on its way through the archive for an hour; then it is sent again.
"""

import structlog
from pydicom.uid import generate_uid
from pynetdicom.events import Event
from sqlalchemy import update

from service.core import circuits
from service.core.confirmation import confirm, give_up, miss, never_finds, take_commitment
from service.core.destination import Destination
from service.core.errors import DeliveryError, LeaseLost, NotAccepted, Unanswered
from service.core.failpoints import failpoint
from service.core.leases import (
    CONFIRM,
    Lease,
    backoff_seconds,
    held,
    leased,
    release,
    release_failed,
    renewed,
)
from service.core.ledger import now
from service.core.states import Proof
from service.core.tables import Confirmation, Report, Study
from worker.context import Context
from worker.peer import Peer
from worker.scu import DimsePeer
from worker.tasks.connect import connect

_BATCH = 50
# A commitment may be answered over the same association, or over another one much later.
LINGER_SECONDS = 2.0
ASK_AGAIN_SECONDS = 20 * 60.0
_LONGEST_PAUSE_SECONDS = 300.0
_UNANSWERED = "storage commitment is not answered"
_NEVER_FOUND = (
    "not found by query within an hour, nor was any object there before: it lost the object, or finds no "
    'instances by query, which confirm = "none" in its settings says'
)
_log = structlog.get_logger()


def run(context: Context) -> None:
    """Ask the destination whose deliveries have waited longest."""
    name, leases = circuits.claim_for_one_destination(context.ledger, CONFIRM, _BATCH)
    if leases:
        failpoint("confirm.claimed")
        _ask(context, name, leases)


def _ask(context: Context, name: str, leases: list[Lease]) -> None:
    destination = context.settings.destination(name)
    if destination is None or destination.confirm == "none":
        for lease in leases:
            _give_up(context, lease, None)
        return
    with renewed(context.ledger, leases):
        try:
            _ask_each(context, destination, leases)
        except NotAccepted:
            for lease in leases:
                _cannot_say(context, destination, lease)
        except LeaseLost as fault:
            _log.warning("confirm.lease_lost", reason=str(fault))
            for lease in leases:
                release(context.ledger, lease, "a study of the same batch was erased", 1.0)
        except Unanswered as fault:
            for lease in leases:
                release(
                    context.ledger, lease, str(fault), backoff_seconds(lease.attempts, _LONGEST_PAUSE_SECONDS)
                )
        except DeliveryError as fault:
            for lease in leases:
                release(context.ledger, lease, str(fault), 0.0)
            circuits.failed(context.ledger, name, str(fault))
            return
        except Exception as fault:
            _log.exception("confirm.failed", destination=name)
            for lease in leases:
                release_failed(context.ledger, lease, fault)
            return
    circuits.reached(context.ledger, name)


def _ask_each(context: Context, destination: Destination, leases: list[Lease]) -> None:
    if destination.is_dicomweb:
        with connect(context, destination, ()) as web:
            for lease in leases:
                _look(context, destination, lease, web)
        return

    def take(event: Event) -> int:
        return take_commitment(
            context.ledger, context.settings, destination.ae_title, event.event_information
        )

    with DimsePeer(destination, context.settings.ae_title, on_commitment=take) as peer:
        commits = peer.commits and destination.confirm in ("commitment", None)
        first = [lease for lease in leases if commits and not _asked(context, lease)]
        for lease in leases:
            if lease in first:
                continue
            if destination.confirm != "commitment":
                _look(context, destination, lease, peer)
            elif commits:
                _not_proven(context, destination, lease, _UNANSWERED)
            else:
                _cannot_say(context, destination, lease)
        # Last: Orthanc accepts the context from everybody, and aborts when somebody unknown asks.
        if first:
            _request_commitment(context, destination, first, peer)


def _asked(context: Context, lease: Lease) -> bool:
    """Return whether a commitment was asked for: its answer is waited for, and nothing is asked twice."""
    with context.ledger.read() as session:
        return leased(session, lease).transaction_uid is not None


def _request_commitment(
    context: Context, destination: Destination, leases: list[Lease], peer: DimsePeer
) -> None:
    """Ask for all of them in one transaction; its UID is in the ledger before the destination knows it."""
    transaction_uid = str(generate_uid())
    _write_request(context, leases, transaction_uid)
    failpoint("confirm.request_written")
    with context.ledger.read() as session:
        objects = [_instance(leased(session, lease)) for lease in leases]
        named = [(report.sop_class_uid, report.sop_instance_uid) for report in objects]
    status = peer.request_commitment(transaction_uid, named)
    failpoint("confirm.requested")
    if status != 0x0000:
        why = f"storage commitment was refused ({'no answer' if status is None else f'{status:04X}'})"
        if destination.confirm == "commitment":
            _write_request(context, leases, None)  # to be asked again
        for lease in leases:
            _not_proven(
                context, destination, lease, why, backoff_seconds(lease.attempts, _LONGEST_PAUSE_SECONDS)
            )
        return
    peer.linger(lambda: not any(_is_held(context, lease) for lease in leases), LINGER_SECONDS)
    for lease in leases:
        _not_proven(context, destination, lease, _UNANSWERED)


def _counts(context: Context, destination: Destination) -> bool:
    """Return whether what a destination does not find is not there.

    An archive may take such queries and know no instances; where the site says how, that is trusted.
    """
    if destination.confirm is not None:
        return True
    with context.ledger.read() as session:
        return not never_finds(session, destination.name)


def _write_request(context: Context, leases: list[Lease], transaction_uid: str | None) -> None:
    with context.ledger.write() as session:
        session.execute(
            update(Confirmation)
            .where(Confirmation.id.in_([lease.row_id for lease in leases]))
            .values(transaction_uid=transaction_uid)
            .execution_options(synchronize_session=False)
        )


def _look(context: Context, destination: Destination, lease: Lease, peer: Peer) -> None:
    with context.ledger.read() as session:
        row = leased(session, lease)
        report, late = _instance(row), row.until < now()
        study_instance_uid = session.get_one(Study, report.study_id).study_instance_uid
    there = peer.holds(study_instance_uid, report.series_instance_uid, report.sop_instance_uid)
    if there is None:
        _cannot_say(context, destination, lease)
    elif not there and not late:
        pause = backoff_seconds(lease.attempts, _LONGEST_PAUSE_SECONDS)
        release(context.ledger, lease, "not found there yet", pause)
    elif not there and not _counts(context, destination):
        _give_up(context, lease, _NEVER_FOUND)
    else:
        failpoint("confirm.answered")
        try:
            with context.ledger.write() as session:
                row, study = held(session, lease)
                if there:
                    confirm(session, study, row, Proof.QUERY)
                else:
                    miss(session, study, row, "not found by query within an hour")
        except LeaseLost:
            return  # a commitment was answered meanwhile


def _cannot_say(context: Context, destination: Destination, lease: Lease) -> None:
    """Let a delivery be that nothing can prove for now; where the site asked for proof a person is told."""
    way = {"commitment": "storage commitment", "find": "C-FIND", "qido": "QIDO-RS"}.get(
        destination.confirm or ""
    )
    _not_proven(context, destination, lease, f"the destination does not answer {way or 'what proves it'}")


def _not_proven(
    context: Context,
    destination: Destination,
    lease: Lease,
    why: str,
    pause: float | None = None,
) -> None:
    """Ask again later; after an hour tell a person, where the site said how it is to be confirmed."""
    with context.ledger.read() as session:
        late = leased(session, lease).until < now()
    if late:
        _give_up(context, lease, why if destination.confirm else None)
    else:
        release(context.ledger, lease, why, ASK_AGAIN_SECONDS if pause is None else pause)


def _give_up(context: Context, lease: Lease, why: str | None) -> None:
    try:
        with context.ledger.write() as session:
            row, study = held(session, lease)
            give_up(session, study, row, why)
    except LeaseLost:
        return  # answered meanwhile


def _is_held(context: Context, lease: Lease) -> bool:
    with context.ledger.read() as session:
        row = session.get(Confirmation, lease.row_id)
        return row is not None and row.lease_token == lease.token


def _instance(row: Confirmation) -> Report:
    return row.delivery.report
