"""Which destinations do not take the first form of an object: remembered, so as not to offer it each time.

Comprehensive 3D SR, and heat maps in JPEG: see `service.core.states.SECOND_FORMS`. Forgotten when the
destination's address changes, and when a person retries a study that goes there
(`service.core.retry.retry_study`): after an upgrade of the PACS the next report is offered as 3D again.
Forgetting too often costs one rejected offer, no more.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.core.destination import Destination
from service.core.ledger import Ledger, now
from service.core.states import Kind
from service.core.tables import Refusal


def remember(ledger: Ledger, destination: Destination, kind: Kind) -> None:
    """Write down that `destination` rejected objects of `kind`, in a transaction of its own."""
    try:
        with ledger.write() as session:
            session.merge(Refusal(destination=destination.name, kind=kind, url=destination.url, at=now()))
    except IntegrityError:
        return  # somebody else wrote the same at the same moment


def refusals(session: Session, destinations: Iterable[Destination]) -> Sequence[Refusal]:
    """Return what is remembered of `destinations` at their present addresses."""
    urls = {destination.name: destination.url for destination in destinations}
    return [row for row in session.scalars(select(Refusal)) if urls.get(row.destination) == row.url]


def forget(session: Session, names: Iterable[str]) -> bool:
    """Offer the first form of everything to these destinations again; return whether one had refused it."""
    refused = delete(Refusal).where(Refusal.destination.in_(list(names))).returning(Refusal.destination)
    return bool(session.execute(refused).all())
