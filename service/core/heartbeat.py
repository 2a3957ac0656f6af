"""Signs of life: every process of a role writes one row every few seconds; `/readyz` and metrics read it."""

import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import structlog
from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError

from service.core import tally
from service.core.leases import SHADOW, STAGES, at_work, oldest_ready_seconds, owner
from service.core.ledger import Ledger, now
from service.core.tables import Heartbeat

BEAT_SECONDS = 3.0
ALIVE_SECONDS = 15.0
STUCK_SECONDS = 60.0
ROLES = ("listener", "scheduler", "decode", "infer", "report", "deliver")
_log = structlog.get_logger()


def beat(ledger: Ledger, role: str, detail: str = "", about: Mapping[str, Any] | None = None) -> None:
    """Write that this process of `role` is alive.

    `detail` says what is wrong with it, if anything; `about` what only it knows, for the system page.
    """
    said = {"version": version("hilum"), **(about or {})}
    with ledger.write() as session:
        session.merge(Heartbeat(process=f"{role}:{owner()}", role=role, at=now(), detail=detail, about=said))
        session.execute(delete(Heartbeat).where(Heartbeat.at < now() - timedelta(hours=1)))


def start_beating(
    ledger: Ledger, role: str, about: Callable[[], Mapping[str, Any]] = dict
) -> threading.Event:
    """Beat, and write what was counted, from a thread until the returned event is set."""
    stopped = threading.Event()

    def run() -> None:
        while True:
            try:
                beat(ledger, role, about=about())
            except SQLAlchemyError as fault:
                _log.warning("heartbeat.not_written", error=type(fault).__name__)
            tally.flush(ledger)
            if stopped.wait(BEAT_SECONDS):
                return

    threading.Thread(target=run, name="heartbeat", daemon=True).start()
    return stopped


def silent_roles(ledger: Ledger) -> dict[str, str]:
    """Return each role without a living process, or whose processes say that something is wrong, and why."""
    with ledger.read() as session:
        alive = session.execute(
            select(Heartbeat.role, Heartbeat.detail).where(
                Heartbeat.at >= now() - timedelta(seconds=ALIVE_SECONDS)
            )
        )
        said: dict[str, list[str]] = {}
        for role, detail in alive:
            said.setdefault(role, []).append(detail)
        stuck = [
            (stage.queue, 0.0 if at_work(session, stage) else oldest_ready_seconds(session, stage))
            for stage in STAGES
            if stage is not SHADOW  # which waits until nothing else does
        ]
    faults = {role: f"no {role} process has been heard of for {ALIVE_SECONDS:.0f} s" for role in ROLES}
    for role, details in said.items():
        if any(not detail for detail in details):
            faults.pop(role, None)
        else:
            faults[role] = details[0]
    # A pool whose children are alive may have stopped consuming all the same.
    for queue, seconds in stuck:
        if seconds > STUCK_SECONDS:
            faults.setdefault(queue, f"work has been waiting for {seconds:.0f} s")
    return faults
