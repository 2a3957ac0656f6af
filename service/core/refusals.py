"""Which destinations take no Comprehensive 3D SR: remembered, so that they are not asked for each study.

Forgotten when the destination's address changes, and when a person retries a study that goes there
(`service.core.completion.retry_study`): after an upgrade of the PACS the next report is offered as 3D again.
Forgetting too often costs one rejected offer, no more.
"""

from collections.abc import Iterable

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.core.ledger import Ledger, now
from service.core.settings import Destination
from service.core.tables import Refusal


def remember(ledger: Ledger, destination: Destination) -> None:
    """Write down that `destination` rejected Comprehensive 3D SR, in a transaction of its own."""
    try:
        with ledger.write() as session:
            session.merge(Refusal(destination=destination.name, url=destination.url, at=now()))
    except IntegrityError:
        return  # somebody else wrote the same at the same moment


def refusals(session: Session, destinations: Iterable[Destination]) -> dict[str, Refusal]:
    """Return what is remembered of those of `destinations` that reject Comprehensive 3D SR, by name."""
    urls = {destination.name: destination.url for destination in destinations}
    return {
        row.destination: row
        for row in session.scalars(select(Refusal))
        if urls.get(row.destination) == row.url
    }


def forget(session: Session, names: Iterable[str]) -> None:
    """Offer Comprehensive 3D SR to these destinations again."""
    session.execute(delete(Refusal).where(Refusal.destination.in_(list(names))))
