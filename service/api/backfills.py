"""What the API and the system page say of back-fills."""

from sqlalchemy.orm import Session

from service.api import schemas
from service.core import backfill
from service.core.backfill import Query
from service.core.tables import Backfill

_MOST = 20


def backfills(session: Session) -> list[schemas.BackfillOut]:
    """Return the newest back-fills, each with how far it is."""
    return [_one(session, found) for found in backfill.every(session)[:_MOST]]


def _one(session: Session, found: Backfill) -> schemas.BackfillOut:
    progress = backfill.progress(session, found)
    return schemas.BackfillOut(
        name=found.name,
        state=found.state,
        source=found.source,
        looks_for=str(Query.of(found.query)),
        delivers=found.delivers,
        created_at=found.created_at,
        created_by=found.created_by,
        finished_at=found.finished_at,
        searched_to=found.cursor,
        waits_for=found.last_error,
        note=found.note,
        found=progress.found,
        fetched=progress.fetched,
        studies=progress.studies,
        in_work=progress.in_work,
        analysed=progress.analysed,
        not_analysed=progress.not_analysed,
        failed=progress.failed,
        live=progress.live,
    )
