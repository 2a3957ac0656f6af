"""How the gateway is: what the system page shows, and what keeps studies from their reports."""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.core import feedback
from service.core.circuits import away
from service.core.heartbeat import ALIVE_SECONDS, silent_roles
from service.core.leases import STAGES, Stage, count_ready, oldest_ready_seconds, owner
from service.core.ledger import Ledger, now
from service.core.live import Live
from service.core.settings import Settings
from service.core.spool import Spool
from service.core.states import DeliveryState, StudyState
from service.core.tables import Circuit, Heartbeat, Instance, Outbox, Report, Study

_FRESH_SECONDS = 2.0
# Of A700 what no room and no repair mends.
_IS_TOO_LARGE = "HILUM_MAX_OBJECT_BYTES"
_IN_WORK = (StudyState.RECEIVING, StudyState.ANALYSING)


@dataclass(frozen=True)
class Queue:
    """What waits for one stage; `ready` could start now."""

    name: str
    waiting: int
    ready: int
    oldest_seconds: float


@dataclass(frozen=True)
class Process:
    """One process that gave a sign of life within the last hour."""

    name: str
    role: str
    at: datetime
    detail: str
    about: Mapping[str, Any]

    @property
    def is_alive(self) -> bool:
        return self.at >= now() - timedelta(seconds=ALIVE_SECONDS)


@dataclass(frozen=True)
class Away:
    """A destination that could not be reached when it was tried last."""

    since: datetime
    failures: int
    next_try: datetime
    error: str


@dataclass(frozen=True)
class Situation:
    """How the gateway is at this moment.

    Attributes
    ----------
    faults
        What is wrong, by role: see `service.core.heartbeat.silent_roles`. "ledger" alone when even this
        process can't write into it: nobody's signs of life say anything then.
    free_bytes, total_bytes
        Of the data folder; None where it cannot be looked at.
    is_read_only
        Whether its file system is.
    config_fault
        What is wrong with the file of HILUM_CONFIG as it was saved last.
    refuses_below, keeps_free
        Free bytes below which nothing is taken in, and below which old files go.
    away
        By destination.
    in_work, oldest
        Studies without a report yet, or with one on its way, and when the oldest of these came. Like
        `attention` without what back-fills fetched, which has a list of its own.
    """

    faults: Mapping[str, str] = field(default_factory=dict)
    free_bytes: int | None = None
    total_bytes: int | None = None
    is_read_only: bool = False
    config_fault: str = ""
    refuses_below: int = 0
    keeps_free: int = 0
    away: Mapping[str, Away] = field(default_factory=dict)
    queues: Sequence[Queue] = ()
    processes: Sequence[Process] = ()
    in_work: int = 0
    attention: int = 0
    to_review: int = 0
    oldest: datetime | None = None
    oldest_uid: str | None = None
    last_received: datetime | None = None

    @property
    def is_full(self) -> bool:
        """Whether objects are refused for want of room."""
        return self.free_bytes is not None and self.free_bytes < self.refuses_below

    @property
    def latest_processes(self) -> list[Process]:
        """Those that live, and of a role without any the one that lived last."""
        living = [item for item in self.processes if item.is_alive]
        roles = {item.role for item in living}
        dead = sorted((item for item in self.processes if item.role not in roles), key=lambda item: item.at)
        return sorted([*living, *{item.role: item for item in dead}.values()], key=lambda item: item.role)

    @property
    def ended(self) -> Mapping[str, int]:
        """How many others of each role have fallen silent within the last hour."""
        shown = {item.name for item in self.latest_processes}
        return Counter(item.role for item in self.processes if item.name not in shown)

    @property
    def refuses(self) -> Mapping[str, str] | None:
        """The refusal of an object for want of resources (A700), unless one was stored since."""
        refusal = self.newest("refusal")
        if refusal is None or not refusal["reason"].startswith("A700") or _IS_TOO_LARGE in refusal["reason"]:
            return None
        came_at = datetime.fromisoformat(refusal["at"])
        return refusal if self.last_received is None or self.last_received < came_at else None

    def newest(self, what: str) -> Mapping[str, str] | None:
        """Return the newest "association", "echo", "rejection" or "refusal" of any listener."""
        told = [item.about[what] for item in self.processes if what in item.about]
        return max(told, key=lambda item: str(item["at"]), default=None)


class Lookout:
    """Looks at most every two seconds, whoever asks."""

    def __init__(self, ledger: Ledger, live: Live) -> None:
        self._ledger = ledger
        self._live = live
        self._settings = live.settings
        self._lock = threading.Lock()
        self._seen: tuple[float, Situation] | None = None

    def look(self) -> Situation:
        """Return how things are."""
        with self._lock:
            if self._seen is None or self._seen[0] < time.monotonic() - _FRESH_SECONDS:
                self._seen = time.monotonic(), self._look()
            return self._seen[1]

    def _look(self) -> Situation:
        room = _room(self._settings)
        faults = silent_roles(self._ledger)
        with self._ledger.read() as session:
            oldest = _oldest(session)
            return Situation(
                faults={"ledger": "it cannot be written"} if _is_mute(session) else faults,
                **room,
                config_fault=self._live.fault,
                refuses_below=self._settings.min_free_bytes,
                keeps_free=self._settings.free_bytes_to_keep,
                away={item.destination: _away(item) for item in away(session)},
                queues=[_queue(session, stage) for stage in STAGES],
                processes=[
                    Process(row.process, row.role, row.at, row.detail, row.about or {})
                    for row in session.scalars(select(Heartbeat).order_by(Heartbeat.role, Heartbeat.process))
                ],
                in_work=_count(session, Study.state.in_(_IN_WORK), Study.backfill_id.is_(None)),
                attention=_count(session, Study.attention.is_not(None), Study.backfill_id.is_(None)),
                to_review=_count(session, feedback.wants("to_review")),
                oldest=oldest[0] if oldest else None,
                oldest_uid=oldest[1] if oldest else None,
                last_received=session.scalar(
                    select(Instance.received_at).order_by(Instance.id.desc()).limit(1)
                ),
            )


def _room(settings: Settings) -> dict[str, Any]:
    spool = Spool(settings.data_dir)
    try:
        free, total, is_read_only = spool.free_bytes(), spool.total_bytes(), spool.is_read_only()
    except OSError:
        return {}
    return {"free_bytes": free, "total_bytes": total, "is_read_only": is_read_only}


def _is_mute(session: Session) -> bool:
    """Return whether this process, which lives, can't write its own signs of life."""
    last = session.scalar(select(Heartbeat.at).where(Heartbeat.process == f"api:{owner()}"))
    return last is not None and last < now() - timedelta(seconds=ALIVE_SECONDS)


def _away(circuit: Circuit) -> Away:
    return Away(circuit.since, circuit.failures, circuit.open_until, circuit.last_error)


def _queue(session: Session, stage: Stage) -> Queue:
    table = stage.table
    waiting = session.scalar(select(func.count()).select_from(table).where(table.state == stage.waiting))
    return Queue(stage.name, waiting or 0, count_ready(session, stage), oldest_ready_seconds(session, stage))


def _count(session: Session, *conditions: Any) -> int:
    return session.scalar(select(func.count()).select_from(Study).where(*conditions)) or 0


def _oldest(session: Session) -> tuple[datetime, str] | None:
    """Return the oldest study that is in work, or whose reports wait to be sent."""
    study = select(Study.received_at, Study.study_instance_uid)
    # One query a state, so that each is a look into an index.
    found = [
        session.execute(
            study.where(Study.state == state, Study.backfill_id.is_(None)).order_by(Study.id).limit(1)
        ).first()
        for state in _IN_WORK
    ]
    first = session.scalar(select(func.min(Outbox.id)).where(Outbox.state == DeliveryState.PENDING))
    if first is not None:
        sent = study.join(Report, Report.study_id == Study.id).join(Outbox, Outbox.report_id == Report.id)
        found.append(session.execute(sent.where(Outbox.id == first)).first())
    rows = [(row.received_at, row.study_instance_uid) for row in found if row is not None]
    return min(rows, default=None)
