"""What one task of queue `deliver` sends: objects for one destination, as they were when it began."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from sqlalchemy import exists, select

from service.core.destination import Destination
from service.core.leases import Lease
from service.core.states import Kind
from service.core.tables import Outbox, Report, Study, Subject
from worker.context import Context
from worker.peer import Sendable

_log = structlog.get_logger()


@dataclass(frozen=True)
class Delivery:
    """One object on its way.

    `failures` and `as_built` are those of the outbox; `report_id` and `study_id` are rows of the ledger.
    `told`: whether some destination has said how it files the study.
    """

    lease: Lease
    item: Sendable
    report_id: int
    kind: Kind
    built_at: datetime
    study_id: int
    study_instance_uid: str
    failures: int
    as_built: bool
    told: bool


@dataclass(frozen=True)
class Accepted:
    """A delivery that the destination took: with which status, and when."""

    delivery: Delivery
    status: int
    at: datetime


@dataclass
class Batch:
    """What is sent over one association, and what the destination says of its studies.

    `accepted` is what it took and is not written down yet. `proves`: whether what is accepted is to be
    confirmed.
    """

    context: Context
    destination: Destination
    waiting: list[Delivery]
    accepted: list[Accepted] = field(default_factory=list)
    proves: bool = False
    told: dict[str, Mapping[str, str] | None] = field(default_factory=dict)


def read(context: Context, leases: Sequence[Lease]) -> list[Delivery]:
    """Return what was leased, in that order; what was erased meanwhile waits no more."""
    with context.ledger.read() as session:
        found = {
            row.id: row
            for row in session.execute(
                select(
                    *(Outbox.id, Outbox.failures, Outbox.as_built, Outbox.report_id),
                    *(Report.kind, Report.path, Report.sop_class_uid, Report.transfer_syntax_uid),
                    *(Report.created_at, Report.study_id, Study.study_instance_uid),
                    exists()
                    .where(Subject.study_id == Report.study_id, Subject.told_by.is_not(None))
                    .label("told"),
                )
                .join(Report, Report.id == Outbox.report_id)
                .join(Study, Study.id == Report.study_id)
                .where(Outbox.id.in_([lease.row_id for lease in leases]))
            )
        }
    deliveries = []
    for lease in leases:
        row = found.get(lease.row_id)
        if row is None:
            _log.warning("deliver.lease_lost", reason=f"deliver {lease.row_id}: the work is gone")
            continue
        item = Sendable(context.spool.absolute(row.path), row.sop_class_uid, row.transfer_syntax_uid)
        deliveries.append(
            Delivery(
                lease,
                item,
                row.report_id,
                Kind(row.kind),
                row.created_at,
                row.study_id,
                row.study_instance_uid,
                row.failures,
                row.as_built,
                row.told,
            )
        )
    return deliveries
