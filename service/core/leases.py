"""Work handed out by lease, so that work done twice, or lost with its process, does no harm.

A claim takes up to N ready rows in one UPDATE, sets owner and end, raises the token and counts the attempt
before any work is done. A result commits only under the token it was claimed with (`held`).
"""

import errno
import os
import random
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import structlog
from sqlalchemy import ColumnElement, Select, case, exists, func, or_, select, tuple_, update
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from service.core.errors import LeaseLost
from service.core.ledger import Ledger, now
from service.core.states import (
    AnalysisState,
    AssessmentState,
    BackfillState,
    ConfirmationState,
    DeliveryState,
    InstanceState,
    RevisionState,
)
from service.core.tables import (
    Analysis,
    AssessmentReport,
    Backfill,
    Base,
    Circuit,
    Confirmation,
    Feedback,
    Instance,
    Outbox,
    Pause,
    Report,
    Revision,
    Shadow,
    Study,
)

LEASE_SECONDS = 30.0
# Work that dies three times with its process is poison; deliveries are tried as long as the report lives.
MAX_ATTEMPTS = 3
# No space, no quota, no descriptors, a disk or mount that fails: all work meets these, no work causes them.
_OF_THE_SITE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE),
}

# Forked children share it; a supervisor gives one to all that it starts in each other's place.
_FAMILY = uuid.uuid4().hex[:8]
FAMILY_VARIABLE = "HILUM_FAMILY"
FILE_GONE = "its file is gone from the data folder"
_log = structlog.get_logger()


Table = (
    type[Instance]
    | type[Analysis]
    | type[Shadow]
    | type[Revision]
    | type[Outbox]
    | type[Confirmation]
    | type[AssessmentReport]
    | type[Backfill]
)


@dataclass(frozen=True)
class Stage:
    """One kind of work: the queue its hints go to, the table it lives in, the state that waits.

    `limited`: whether work is given up after `MAX_ATTEMPTS`; what is not is work with a destination, which
    may be away.
    """

    name: str
    queue: str
    table: Table
    waiting: str
    limited: bool = True


DECODE = Stage("decode", "decode", Instance, InstanceState.RECEIVED)
INFER = Stage("infer", "infer", Analysis, AnalysisState.PENDING)
SHADOW = Stage("shadow", "infer", Shadow, AnalysisState.PENDING)
REPORT = Stage("report", "report", Revision, RevisionState.PENDING)
DELIVER = Stage("deliver", "deliver", Outbox, DeliveryState.PENDING, limited=False)
CONFIRM = Stage("confirm", "deliver", Confirmation, ConfirmationState.WAITING, limited=False)
ASSESS = Stage("assess", "report", AssessmentReport, AssessmentState.PENDING)
# Asks archives, so its hints go where other people's servers are waited for.
BACKFILL = Stage("backfill", "deliver", Backfill, BackfillState.RUNNING, limited=False)
STAGES = (DECODE, INFER, SHADOW, REPORT, ASSESS, DELIVER, CONFIRM, BACKFILL)
# What lies between a film's coming and its report.
TO_REPORT = (DECODE, INFER, REPORT)
# Where back-fills come last.
IN_ORDER = (*TO_REPORT, SHADOW)

# How to get from the work to its study.
_TO_STUDY: dict[str, tuple[type[Base], ...]] = {
    DECODE.name: (Study,),
    INFER.name: (Instance, Study),
    SHADOW.name: (Instance, Study),
    REPORT.name: (Study,),
    ASSESS.name: (Feedback, Study),
    DELIVER.name: (Report, Study),
    CONFIRM.name: (Outbox, Report, Study),
}


@dataclass(frozen=True)
class Lease:
    """The right to work on one row until the lease ends; `attempts` counts this one too."""

    stage: Stage
    row_id: int
    token: int
    attempts: int


def ready(stage: Stage, moment: Any = None) -> ColumnElement[bool]:
    """Return the condition for rows of `stage` that may be started at `moment`: now, or a bound parameter."""
    table, moment = stage.table, now() if moment is None else moment
    condition: ColumnElement[bool] = (
        (table.state == stage.waiting)
        & (table.ready_at <= moment)
        & or_(table.lease_until.is_(None), table.lease_until < moment)
    )
    if stage.limited:
        return condition & (table.attempts < MAX_ATTEMPTS)
    if stage is BACKFILL:
        return condition  # the attempts that count are those of each study
    if stage is DELIVER:
        paused = exists().where(Pause.destination == Outbox.destination, Pause.until > moment)
        condition &= ~paused.correlate(Outbox)
    return condition & ~_away(stage, Circuit.open_until > moment)


def _away(stage: Stage, *where: ColumnElement[bool]) -> ColumnElement[bool]:
    table: Any = stage.table
    return exists().where(Circuit.destination == table.destination, *where)


def of_backfill(stage: Stage) -> ColumnElement[bool]:
    """Return the condition for work on studies that a back-fill fetched."""
    table: Any = stage.table
    fetched = Study.backfill_id.is_not(None)
    if stage in (INFER, SHADOW):
        query = exists().where(Instance.id == table.instance_id, Study.id == Instance.study_id, fetched)
    elif stage is DELIVER:
        query = exists().where(Report.id == table.report_id, Study.id == Report.study_id, fetched)
    else:
        query = exists().where(Study.id == table.study_id, fetched)
    return query.correlate(table)


def free_left_behind(ledger: Ledger, stage: Stage) -> int:
    """Give back at once what dead processes of this worker hold, not only when their leases end.

    Work of this host's other workers, and of other hosts, is left alone: nobody here knows whether they live.
    """
    with ledger.read() as session:
        rows = held_by(session, stage, os.environ.get(FAMILY_VARIABLE, _FAMILY))
    left = [lease for lease, holder in rows if not _alive(int(holder.rsplit(":", 1)[1]))]
    for lease in left:
        release(ledger, lease, "its process died", backoff_seconds(lease.attempts, 8))
    return len(left)


def leased(session: Session, lease: Lease) -> Any:
    """Return the leased row for reading.

    Raises
    ------
    LeaseLost
        When it is gone: its study was erased meanwhile.
    """
    row: Any = session.get(lease.stage.table, lease.row_id)
    if row is None:
        raise LeaseLost(f"{lease.stage.name} {lease.row_id}: the work is gone")
    return row


@contextmanager
def named_in_logs(ledger: Ledger, lease: Lease) -> Iterator[None]:
    """Let every log line of the block name the study and the row of a piece of work."""
    with ledger.read() as session:
        uid = _with_study(select(Study.study_instance_uid), lease.stage, [lease])
        ids = {"study_instance_uid": session.scalar(uid), lease.stage.table.__tablename__: lease.row_id}
    with structlog.contextvars.bound_contextvars(**ids):
        yield


def held(session: Session, lease: Lease) -> tuple[Any, Study]:
    """Return the leased row for writing its result, and its study.

    Raises
    ------
    LeaseLost
        When somebody else has claimed the row since, or it no longer waits: the result must be dropped.
    """
    for row, study in held_together(session, [lease]):
        return row, study
    raise LeaseLost(f"{lease.stage.name} {lease.row_id}: the work belongs to somebody else now")


def held_together(session: Session, leases: Sequence[Lease]) -> list[tuple[Any, Study]]:
    """Return those rows of one stage whose leases still hold, for writing their results, and their studies.

    Studies are locked before their rows, here and everywhere, and each in the order of their ids: what
    happens to one study happens one after the other, and nobody waits for somebody who waits for him.
    """
    stage = leases[0].stage
    table: Any = stage.table
    studies = session.execute(
        _with_study(select(table.id, Study), stage, leases)
        .order_by(Study.id)
        .with_for_update(of=Study)
        .execution_options(populate_existing=True)
    )
    study_of: dict[int, Study] = dict(iter(studies))
    rows = session.scalars(
        select(table)
        .where(
            table.id.in_(study_of),  # by the primary key: SQLite takes no index for pairs
            tuple_(table.id, table.lease_token).in_([(lease.row_id, lease.token) for lease in leases]),
            table.state == stage.waiting,
        )
        .order_by(table.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()
    for row in rows:
        row.lease_owner = row.lease_until = None
    return [(row, study_of[row.id]) for row in rows]


def _with_study(query: Select[Any], stage: Stage, leases: Sequence[Lease]) -> Select[Any]:
    """Let a query for leased rows name columns of their studies too."""
    query = query.select_from(stage.table)
    for table in _TO_STUDY[stage.name]:
        query = query.join(table)
    return query.where(stage.table.id.in_([lease.row_id for lease in leases]))


def release(ledger: Ledger, lease: Lease, error: str, delay_seconds: float, **values: int | None) -> None:
    """Give the row back with what went wrong, to be tried after `delay_seconds`; `values` are set too."""
    table = lease.stage.table
    with ledger.write() as session:
        session.execute(
            update(table)
            .where(
                table.id == lease.row_id,
                table.lease_token == lease.token,
                table.state == lease.stage.waiting,
                table.lease_until.is_not(None),
            )
            .values(
                lease_owner=None,
                lease_until=None,
                last_error=error[:2000],
                ready_at=now() + timedelta(seconds=delay_seconds),
                **values,
            )
            .execution_options(synchronize_session=False)
        )


def release_failed(ledger: Ledger, lease: Lease, fault: Exception) -> None:
    """Give back work that raised: a full disk or an unreachable ledger costs no attempt, all else does.

    What is kept is the kind of the fault; its message may repeat what an object says of a patient.
    """
    error = FILE_GONE if isinstance(fault, FileNotFoundError) else type(fault).__name__
    away = isinstance(fault, OperationalError | InterfaceError | PoolTimeout)
    if away or (isinstance(fault, OSError) and fault.errno in _OF_THE_SITE):
        delay = random.uniform(15, 30)  # noqa: S311
        release(ledger, lease, error, delay, attempts=lease.attempts - 1)
    else:
        release(ledger, lease, error, backoff_seconds(lease.attempts, 8))


@contextmanager
def renewed(ledger: Ledger, leases: Sequence[Lease]) -> Iterator[None]:
    """Keep `leases` alive from a thread while the block runs, however long the work takes."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(LEASE_SECONDS / 3):
            try:
                with ledger.write() as session:
                    for lease in leases:
                        table = lease.stage.table
                        session.execute(
                            update(table)
                            .where(
                                table.id == lease.row_id,
                                table.lease_token == lease.token,
                                table.lease_until.is_not(None),
                            )
                            .values(lease_until=now() + timedelta(seconds=LEASE_SECONDS))
                            .execution_options(synchronize_session=False)
                        )
            except SQLAlchemyError as fault:
                _log.warning("lease.not_renewed", error=type(fault).__name__)

    thread = threading.Thread(target=renew, name="lease-renewal", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def exhausted(session: Session, stage: Stage) -> list[Lease]:
    """Return the rows of `stage` whose attempts are used up and which nobody works on, for `held`."""
    table, moment = stage.table, now()
    found = session.execute(
        select(table.id, table.lease_token, table.attempts)
        .where(
            table.state == stage.waiting,
            table.attempts >= MAX_ATTEMPTS,
            or_(table.lease_until.is_(None), table.lease_until < moment),
        )
        # In the order of the index, so that it is used whatever the planner thinks of the states.
        .order_by(table.ready_at)
        .limit(100)
    )
    return [Lease(stage, *row) for row in found]


def count_ready(session: Session, stage: Stage) -> int:
    """Return how many rows of `stage` may be started at this moment; back-fills wait, and are not counted."""
    waits = ready(stage) & ~of_backfill(stage) if stage in IN_ORDER else ready(stage)
    return session.scalar(select(func.count()).select_from(stage.table).where(waits)) or 0


def oldest_ready_seconds(session: Session, stage: Stage) -> float:
    """Return how long the oldest work of `stage` that could start now has been waiting; 0 without any.

    What waits for a destination that is away is not counted, not even while that is tried, nor is the time
    for which a destination was paused, nor what back-fills fetched: that waits for everything else.
    """
    waits = ready(stage) if stage.limited or stage is BACKFILL else ready(stage) & ~_away(stage)
    if stage in IN_ORDER:
        waits &= ~of_backfill(stage)
    since: Any = stage.table.ready_at
    query = select(func.min(since)).where(waits)
    if stage is DELIVER:
        since = case((Pause.until > Outbox.ready_at, Pause.until), else_=Outbox.ready_at)
        query = (
            select(func.min(since))
            .select_from(Outbox)
            .outerjoin(Pause, Pause.destination == Outbox.destination)
            .where(waits)
        )
    oldest = session.scalar(query)
    return max(0.0, (now() - oldest).total_seconds()) if oldest else 0.0


def held_by(session: Session, stage: Stage, family: str) -> list[tuple[Lease, str]]:
    """Return the leases of `stage` that one worker of this host holds at this moment, with their owners."""
    table = stage.table
    found = session.execute(
        select(table.id, table.lease_token, table.attempts, table.lease_owner)
        .where(
            table.state == stage.waiting,
            table.lease_until > now(),
            table.lease_owner.startswith(family_prefix(family), autoescape=True),
        )
        .order_by(table.ready_at)  # as in `exhausted`
    )
    return [(Lease(stage, *row), str(holder)) for *row, holder in found]


def at_work(session: Session, stage: Stage) -> bool:
    """Return whether somebody works on anything of `stage` at this moment."""
    table = stage.table
    one = (
        select(table.id)
        .where(table.state == stage.waiting, table.lease_until > now())
        .order_by(table.ready_at)  # as in `exhausted`
        .limit(1)
    )
    return session.scalar(one) is not None


def backoff_seconds(attempts: int, longest: float) -> float:
    """Return a wait that doubles with each attempt up to `longest`, with jitter of a quarter."""
    return min(longest, 2.0 ** min(attempts, 30)) * random.uniform(0.75, 1.25)  # noqa: S311


def owner() -> str:
    """Return who this process is, for leases and heartbeats."""
    return f"{family_prefix(os.environ.get(FAMILY_VARIABLE, _FAMILY))}{os.getpid()}"


def family_prefix(family: str) -> str:
    """Return what the owners of one worker have in common: its children's, and those of what replaces it."""
    return f"{socket.gethostname()[:100]}:{family}:"


def _alive(process_id: int) -> bool:
    try:
        return bool(psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
