"""Who works on what next: rows that are ready are leased, what was sent here before what back-fills fetched.

Each film is claimed at every stage, so the statements are made once in a process, for the columns and the
order that are asked for; what changes are their parameters.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Integer, Select, Update, bindparam, exists, or_, select, update
from sqlalchemy.orm import Session

from service.core.leases import (
    LEASE_SECONDS,
    MAX_ATTEMPTS,
    TO_REPORT,
    Lease,
    Stage,
    of_backfill,
    owner,
    ready,
)
from service.core.ledger import Ledger, now
from service.core.tables import Study, UtcDateTime

# A bound parameter of an UPDATE may not have the name of a column.
_EQUAL = "with_"


@dataclass(frozen=True)
class Among:
    """Which of the rows that are ready are meant; None: all of them.

    Attributes
    ----------
    tried
        Those that were tried before, or those that never were.
    fetched
        Those of studies that a back-fill fetched, or those that were sent here.
    """

    tried: bool | None = None
    fetched: bool | None = None


_ALL = Among()


def claim(
    ledger: Ledger,
    stage: Stage,
    limit: int,
    among: Among = _ALL,
    *,
    seconds: float = LEASE_SECONDS,
    **equal: Any,
) -> list[Lease]:
    """Lease up to `limit` ready rows, oldest first; nobody else gets them before the lease ends.

    `equal`: columns of the stage's table, and what they have to be.
    """
    with ledger.write() as session:
        return claim_within(session, stage, limit, among, seconds=seconds, **equal)


def claim_within(
    session: Session,
    stage: Stage,
    limit: int,
    among: Among = _ALL,
    *,
    seconds: float = LEASE_SECONDS,
    **equal: Any,
) -> list[Lease]:
    """Do what `claim` does, within a transaction that does more."""
    claimed = session.connection().execute(
        _claiming(stage, among, tuple(equal)),
        {
            **_given(equal),
            "claimed_by": owner(),
            "claimed_until": now() + timedelta(seconds=seconds),
            "at_most": limit,
        },
    )
    return [Lease(stage, *row) for row in sorted(claimed)]


def claim_live_first(ledger: Ledger, stage: Stage, limit: int) -> list[Lease]:
    """Lease up to `limit` pieces of work on what was sent here, else one on what a back-fill fetched."""
    return claim(ledger, stage, limit, Among(fetched=False)) or _claim_behind(ledger, stage)


def claim_in_turn(ledger: Ledger, stage: Stage, limit: int, **equal: Any) -> list[Lease]:
    """Lease a batch of work that has never failed, or alone, when its turn comes, work that has.

    Work that kills its process must not use up the attempts of others, and must not wait for ever behind
    what comes after it. What back-fills fetched comes last, and one by one.
    """
    with ledger.read() as session:
        oldest = session.connection().scalar(_oldest(stage, tuple(equal)), _given(equal))
    if oldest is None:
        return _claim_behind(ledger, stage, **equal)
    first = Among(tried=oldest > 0, fetched=False)
    then = Among(tried=not first.tried, fetched=False)
    sizes = {True: 1, False: limit}
    return (
        claim(ledger, stage, sizes[oldest > 0], first, **equal)
        or claim(ledger, stage, sizes[oldest == 0], then, **equal)
        or _claim_behind(ledger, stage, **equal)
    )


def _claim_behind(ledger: Ledger, stage: Stage, **equal: Any) -> list[Lease]:
    """Lease one piece of work of back-fills while nothing that was sent here waits for its report.

    One at a time: what is sent meanwhile waits for no more than that.
    """
    with ledger.read() as session:
        found = session.connection().scalar(_behind(stage, tuple(equal)), {**_given(equal), **moments()})
    return [] if found is None else claim(ledger, stage, 1, Among(fetched=True), **equal)


@cache
def _claiming(stage: Stage, among: Among, equal: tuple[str, ...]) -> Update:
    table: Any = stage.table
    # A CTE is run once, whatever plan PostgreSQL makes of the rest.
    chosen = (
        select(table.id)
        .where(*_conditions(stage, among, equal))
        .order_by(table.ready_at, table.id)
        .limit(bindparam("at_most", type_=Integer))
        .with_for_update(skip_locked=True)
        .cte("chosen")
    )
    return (
        update(table)
        .where(table.id.in_(select(chosen.c.id)))
        .values(
            lease_owner=bindparam("claimed_by"),
            lease_until=bindparam("claimed_until", type_=UtcDateTime),
            lease_token=table.lease_token + 1,
            attempts=table.attempts + 1,
        )
        .returning(table.id, table.lease_token, table.attempts)
    )


@cache
def _oldest(stage: Stage, equal: tuple[str, ...]) -> Select[Any]:
    """Return the query for the attempts of the oldest row that was sent here."""
    table: Any = stage.table
    conditions = _conditions(stage, Among(fetched=False), equal)
    return select(table.attempts).where(*conditions).order_by(table.ready_at, table.id).limit(1)


@cache
def _behind(stage: Stage, equal: tuple[str, ...]) -> Select[Any]:
    """Return the query for a row of a back-fill whose turn it is."""
    conditions = _conditions(stage, Among(fetched=True), equal)
    return select(stage.table.id).where(*conditions, ~live_waits(bound=True)).limit(1)


def _conditions(stage: Stage, among: Among, equal: tuple[str, ...]) -> list[ColumnElement[bool]]:
    table: Any = stage.table
    conditions = [ready(stage, bindparam("moment", type_=UtcDateTime))]
    conditions += [
        getattr(table, name) == bindparam(_EQUAL + name, type_=getattr(table, name).type) for name in equal
    ]
    if among.fetched is not None:
        conditions.append(of_backfill(stage) if among.fetched else ~of_backfill(stage))
    if among.tried is not None:
        conditions.append(table.attempts > 0 if among.tried else table.attempts == 0)
    return conditions


def _given(equal: dict[str, Any]) -> dict[str, Any]:
    return {"moment": now(), **{_EQUAL + name: value for name, value in equal.items()}}


def live_waits(*, bound: bool = False) -> ColumnElement[bool]:
    """Return whether something that was sent here waits for its turn between its coming and its report.

    What somebody works on just now waits too, and so does a study that is due soon; what is tried again later
    does not. `bound`: its moments are bound parameters, which `moments` gives.
    """
    given: dict[str, Any] = (
        {name: bindparam(name, type_=UtcDateTime) for name in moments()} if bound else moments()
    )
    moment = given["moment"]
    due = (Study.due_at <= given["soon"]) & (Study.due_at > given["long_ago"])
    return or_(
        exists().where(due, Study.backfill_id.is_(None)).correlate(None),
        *(
            exists()
            .where(
                stage.table.state == stage.waiting,
                stage.table.ready_at <= moment,
                stage.table.attempts <= MAX_ATTEMPTS,
                ~of_backfill(stage),
            )
            .correlate(None)
            for stage in TO_REPORT
        ),
    )


def moments() -> dict[str, datetime]:
    """Return the moments by which work is ready, and between which a study is due soon.

    What would be begun now is done in half a second; a study that is long due has a trouble of its own.
    """
    moment = now()
    return {
        "moment": moment,
        "soon": moment + timedelta(seconds=0.5),
        "long_ago": moment - timedelta(seconds=10),
    }
