"""Destinations that are away: one try at a time, further and further apart, for as long as it takes.

A destination whose association or server fails gets a row; while that row is open nothing is sent there, and
what waits for it is put off, so that it takes no turn from the others. When the time is up one worker tries;
its success takes the row away and lets everything go at once. A person's retry lets the next try be now.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import structlog
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.core.leases import backoff_seconds
from service.core.ledger import Ledger, now
from service.core.states import ConfirmationState, DeliveryState
from service.core.tables import Circuit, Confirmation, Outbox

LONGEST_PAUSE_SECONDS = 300.0
# A try may take an association, a query and an object, each up to its timeout.
_TRY_SECONDS = 120.0
_log = structlog.get_logger()


def may_try(ledger: Ledger, destination: str) -> bool:
    """Return whether something may be sent there now; if not, put off what waits for it.

    True for one caller at a time while the destination is away.
    """
    with ledger.read() as session:
        if session.get(Circuit, destination) is None:
            return True
    with ledger.write() as session:
        moment = now()
        circuit = session.get(Circuit, destination, with_for_update=True)
        if circuit is None:
            return True
        if circuit.open_until > moment:
            _put_off(session, destination, circuit.open_until)
            return False
        circuit.open_until = moment + timedelta(seconds=_TRY_SECONDS)
        return True


def failed(ledger: Ledger, destination: str, error: str) -> None:
    """Write down that the destination could not be reached, and put off what waits for it."""
    try:
        with ledger.write() as session:
            circuit = session.get(Circuit, destination, with_for_update=True)
            if circuit is None:
                circuit = Circuit(destination=destination, since=now(), failures=0)
                session.add(circuit)
                _log.warning("destination.away", destination=destination, reason=error)
            circuit.failures += 1
            circuit.last_error = error[:2000]
            pause = backoff_seconds(circuit.failures, LONGEST_PAUSE_SECONDS)
            circuit.open_until = now() + timedelta(seconds=pause)
            _put_off(session, destination, circuit.open_until)
    except IntegrityError:
        return  # somebody else found out at the same moment


def reached(ledger: Ledger, destination: str) -> None:
    """Write down that the destination answered; what was put off for it may go at once."""
    with ledger.read() as session:
        if session.get(Circuit, destination) is None:
            return
    with ledger.write() as session:
        circuit = session.get(Circuit, destination, with_for_update=True)
        if circuit is None:
            return
        for table, waiting in _WAITING:
            session.execute(
                update(table)
                .where(
                    table.destination == destination,
                    table.state == waiting,
                    table.ready_at == circuit.open_until,
                )
                .values(ready_at=now())
                .execution_options(synchronize_session=False)
            )
        _log.info("destination.back", destination=destination, failures=circuit.failures)
        session.delete(circuit)


def try_now(session: Session, destinations: Iterable[str]) -> None:
    """Let the next try of these destinations be at once."""
    session.execute(
        update(Circuit)
        .where(Circuit.destination.in_(list(destinations)), Circuit.open_until > now())
        .values(open_until=now())
        .execution_options(synchronize_session=False)
    )


def away(session: Session) -> Sequence[Circuit]:
    """Return the destinations that could not be reached when they were tried last."""
    return session.scalars(select(Circuit).order_by(Circuit.destination)).all()


_WAITING: tuple[tuple[type[Outbox] | type[Confirmation], str], ...] = (
    (Outbox, DeliveryState.PENDING),
    (Confirmation, ConfirmationState.WAITING),
)


def _put_off(session: Session, destination: str, until: datetime) -> None:
    for table, waiting in _WAITING:
        session.execute(
            update(table)
            .where(
                table.destination == destination,
                table.state == waiting,
                table.lease_until.is_(None),
                table.ready_at < until,
            )
            .values(ready_at=until)
            .execution_options(synchronize_session=False)
        )
