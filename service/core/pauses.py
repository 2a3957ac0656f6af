"""Destinations that nothing is sent to for a while, because the site wants it so: their hours, their rate.

What waits is left alone as long as the pause lasts (`service.core.leases.ready`): it is neither late nor
failed. A pause is known to all workers; when one of them takes up another configuration it ends them all.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta, tzinfo

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.core.destination import Destination
from service.core.ledger import Ledger, now
from service.core.tables import Pause

# Of the objects of a minute, so many go at a time, over one association.
_BURSTS_A_MINUTE = 10


def allowance(session: Session, destination: Destination, zone: tzinfo | None, limit: int) -> int:
    """Return how many of `limit` objects may go to a destination now; while its hours are over, pause it.

    What is taken of them is told to `spend` in the same transaction.
    """
    moment = now()
    pause = session.get(Pause, destination.name, with_for_update=True)
    if pause is not None and pause.until > moment:
        return 0
    hours = destination.hours
    if hours is not None and not hours.hold(moment, zone):
        _pause(session, destination, hours.begin(moment, zone), f"its hours, {hours}")
        return 0
    if destination.rate is None:
        return limit
    return min(limit, max(1, destination.rate // _BURSTS_A_MINUTE))


def spend(session: Session, destination: Destination, count: int) -> None:
    """Pause a destination that has a rate until `count` objects are within it."""
    if destination.rate is not None and count:
        until = now() + timedelta(minutes=count / destination.rate)
        _pause(session, destination, until, f"its rate, {destination.rate} objects a minute")


def pauses(session: Session) -> Sequence[Pause]:
    """Return those that last."""
    return session.scalars(select(Pause).where(Pause.until > now()).order_by(Pause.destination)).all()


def end_all(ledger: Ledger) -> None:
    """End every pause; who still has a reason pauses anew."""
    with ledger.write() as session:
        session.execute(delete(Pause))


def _pause(session: Session, destination: Destination, until: datetime, why: str) -> None:
    session.merge(Pause(destination=destination.name, until=until, why=why))
