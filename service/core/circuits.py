"""Destinations that are away: one try at a time, further and further apart, for as long as it takes.

A destination whose association or server fails gets a row; while that row is open nothing that waits for it
is ready (`service.core.leases.ready`). When the time is up one worker tries; its success takes the row away
and lets everything go at once. A person's retry lets the next try be now.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any

import structlog
from sqlalchemy import Select, bindparam, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.core import tally
from service.core.claims import Among, claim_within
from service.core.destination import Destination
from service.core.leases import (
    CONFIRM,
    DELIVER,
    Lease,
    Stage,
    backoff_seconds,
    ready,
)
from service.core.ledger import Ledger, now
from service.core.pauses import allowance, spend
from service.core.settings import Settings
from service.core.tables import Circuit, UtcDateTime

LONGEST_PAUSE_SECONDS = 300.0
# A try may take two associations with a query each that is not answered, and a third with an object.
_TRY_SECONDS = 180.0
# Beyond so much that waits, its destinations are named by the oldest of it.
_MOST_WAITING = 100_000
_log = structlog.get_logger()


def claim_for_one_destination(
    ledger: Ledger, stage: Stage, limit: int, settings: Settings | None = None
) -> tuple[str, list[Lease]]:
    """Lease what is ready for the destination that has waited longest.

    While a destination is away one caller at a time gets something for it. With `settings` hours and rates of
    destinations are kept.

    Returns
    -------
    str, list of Lease
        The destination and up to `limit` leases for it; an empty name and list when nothing is ready.
    """
    with ledger.read() as session:
        names = session.scalars(_waiting(stage), {"moment": now()}).all()
    for name in names:
        destination = settings.destination(name) if settings else None
        try:
            with ledger.write() as session:
                leases = _claim_for(session, stage, limit, name, destination, settings)
        except IntegrityError:
            continue  # somebody else paused it at the same moment
        if leases:
            return name, leases
    return "", []


@cache
def _waiting(stage: Stage) -> Select[Any]:
    """Return the query for the destinations for which something is ready, longest waiting first."""
    table: Any = stage.table
    # Ordered and limited, so that the index for work is used, not that which has the destinations sorted.
    waiting = (
        select(table.destination, table.ready_at)
        .where(ready(stage, bindparam("moment", type_=UtcDateTime)))
        .order_by(table.ready_at)
        .limit(_MOST_WAITING)
        .subquery()
    )
    return (
        select(waiting.c.destination).group_by(waiting.c.destination).order_by(func.min(waiting.c.ready_at))
    )


def _claim_for(
    session: Session,
    stage: Stage,
    limit: int,
    name: str,
    destination: Destination | None,
    settings: Settings | None,
) -> list[Lease]:
    circuit = session.get(Circuit, name, with_for_update=True)
    if destination is not None and settings is not None:
        limit = allowance(session, destination, settings.zone, limit)
    # What was sent here goes before what back-fills fetched, however much of that waits.
    live = Among(fetched=False) if stage is DELIVER else Among()
    leases = claim_within(session, stage, limit, live, destination=name) if limit else []
    if limit and live != Among() and not leases:
        leases = claim_within(session, stage, limit, destination=name)
    if destination is not None:
        spend(session, destination, len(leases))
    if leases and circuit is not None:
        circuit.open_until = now() + timedelta(seconds=_TRY_SECONDS)
    return leases


def failed(ledger: Ledger, destination: str, error: str) -> None:
    """Write down that the destination could not be reached."""
    tally.add(tally.DELIVERY_FAILURES, destination, "away")
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
    except IntegrityError:
        return  # somebody else found out at the same moment


def reached(ledger: Ledger, destination: str) -> None:
    """Write down that the destination answered; what waits for it may go at once."""
    with ledger.read() as session:
        if session.get(Circuit, destination) is None:
            return
    with ledger.write() as session:
        circuit = session.get(Circuit, destination, with_for_update=True)
        if circuit is None:
            return
        moment = now()
        # It has waited since now: else a long backlog would take every turn from the other destinations.
        for stage in (DELIVER, CONFIRM):
            table: Any = stage.table
            session.execute(
                update(table)
                .where(
                    table.destination == destination,
                    table.state == stage.waiting,
                    table.ready_at < moment,
                )
                .values(ready_at=moment)
                .execution_options(synchronize_session=False)
            )
        _log.info("destination.back", destination=destination, failures=circuit.failures)
        session.delete(circuit)


def try_now(session: Session, destinations: Iterable[str]) -> bool:
    """Let the next try of these destinations be at once; return whether one of them was away."""
    tried = session.execute(
        update(Circuit)
        .where(Circuit.destination.in_(list(destinations)))
        .values(open_until=now())
        .returning(Circuit.destination)
        .execution_options(synchronize_session=False)
    )
    return bool(tried.all())


def away(session: Session) -> Sequence[Circuit]:
    """Return the destinations that could not be reached when they were tried last."""
    return session.scalars(select(Circuit).order_by(Circuit.destination)).all()
