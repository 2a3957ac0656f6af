"""Role 3: the one that looks at the ledger and acts.

Every tick it concludes the studies that are due, gives up work that keeps killing its process, and keeps the
queues supplied; beside the ticks it repairs the data folder, at its start and every ten minutes, removes
files whose time has come, tells people, and makes searchable what an older version received. Several
schedulers may run; the one that holds the ledger's scheduler lease acts.
"""

import threading
import time
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import or_, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.core import tally
from service.core.audit import Audit
from service.core.catalogue import complete
from service.core.completion import conclude_due_studies
from service.core.copies import settle_copies
from service.core.enqueue import Enqueuer
from service.core.errors import LeaseLost
from service.core.failpoints import failpoint
from service.core.heartbeat import BEAT_SECONDS, beat
from service.core.leases import (
    ASSESS,
    DECODE,
    INFER,
    MAX_ATTEMPTS,
    REPORT,
    SHADOW,
    Stage,
    exhausted,
    held,
    owner,
)
from service.core.ledger import Ledger, now, record_event
from service.core.live import Live
from service.core.purge import finish_erasures
from service.core.receive import sweep_incoming
from service.core.repair import Repair
from service.core.retention import Retention
from service.core.settlement import settle
from service.core.spool import Spool
from service.core.states import AnalysisState, AssessmentState, InstanceState, RevisionState, StudyState
from service.core.tables import Instance, SchedulerLease, Study
from service.scheduler.beside import Beside
from service.scheduler.notices import Notices

TICK_SECONDS = 0.2
_LEASE_SECONDS = 5.0
_GIVING_UP_SECONDS = 1.0
_HOUSEKEEPING_SECONDS = 60.0
_REPAIR_SECONDS = 600.0
_RETENTION_SECONDS = 30.0
_NOTICES_SECONDS = 5.0
_CATALOGUE_SECONDS = 60.0
# A transfer that has not grown for an hour has no listener any more.
_STALE_TRANSFER_SECONDS = 3600.0
_log = structlog.get_logger()


class Scheduler:
    """Runs until `stop` is called."""

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        broker_url: str,
        repair: Repair,
        retention: Retention,
        audit: Audit,
        notices: Notices,
        live: Live,
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._retention = retention
        self._audit = audit
        self._live = live
        self._enqueuer = Enqueuer(ledger, broker_url)
        self._stopped = threading.Event()
        self._beside = (
            Beside("repair", lambda: repair.round(self._stopped), _REPAIR_SECONDS),
            Beside("retention", self._remove_files, _RETENTION_SECONDS),
            Beside("notices", lambda: notices.round(self._stopped), _NOTICES_SECONDS),
            Beside("catalogue", lambda: complete(ledger, spool, self._stopped), _CATALOGUE_SECONDS),
        )
        self._redis_fault = ""
        self._lease_renewal = 0.0
        self._next_beat = 0.0
        self._next_housekeeping = 0.0
        self._next_giving_up = 0.0

    def run(self) -> None:
        """Tick until stopped; a ledger that is away is waited for."""
        while not self._stopped.wait(TICK_SECONDS):
            try:
                self.tick()
            except SQLAlchemyError as fault:
                _log.error("scheduler.ledger_unreachable", error=type(fault).__name__)
                self._stopped.wait(1.0)
            except Exception:
                _log.exception("scheduler.failed")
                self._stopped.wait(1.0)
        for work in self._beside:
            work.join()

    def stop(self) -> None:
        """Let `run` return after its tick."""
        self._stopped.set()

    def tick(self) -> None:
        """Look at the ledger once and do what is due."""
        moment = time.monotonic()
        if not self._holds_lease():
            return  # and says nothing: the scheduler that acts speaks for all
        if moment >= self._next_beat:
            beat(self._ledger, "scheduler", self._redis_fault, self._live.about())
            self._next_beat = moment + BEAT_SECONDS
        every = self._live.settings.reports_every_radiograph
        if conclude_due_studies(self._ledger, report_every_radiograph=every):
            failpoint("schedule.concluded")
        fault = self._enqueuer.enqueue_ready()
        if fault != self._redis_fault:
            if fault:
                _log.warning("scheduler.redis_unreachable", reason=fault)
            else:
                _log.warning("scheduler.redis_reachable")
        self._redis_fault = fault
        if moment >= self._next_housekeeping:
            self._next_housekeeping = moment + _HOUSEKEEPING_SECONDS
            sweep_incoming(self._spool, _STALE_TRANSFER_SECONDS)
        if moment >= self._next_giving_up:
            self._next_giving_up = moment + _GIVING_UP_SECONDS
            give_up_exhausted(self._ledger)
        for work in self._beside:
            work.tick(moment)

    def _remove_files(self) -> None:
        finish_erasures(self._ledger, self._spool, self._audit)
        self._retention.round(self._stopped)

    def _holds_lease(self) -> bool:
        if time.monotonic() < self._lease_renewal:
            return True
        self._lease_renewal = 0.0
        with self._ledger.write() as session:
            taken = session.execute(
                update(SchedulerLease)
                .where(
                    SchedulerLease.id == 1,
                    or_(
                        SchedulerLease.owner == owner(),
                        SchedulerLease.until.is_(None),
                        SchedulerLease.until < now(),
                    ),
                )
                .values(owner=owner(), until=now() + timedelta(seconds=_LEASE_SECONDS))
            )
            holds = bool(taken.rowcount)  # type: ignore[attr-defined]
        if holds:
            self._lease_renewal = time.monotonic() + _LEASE_SECONDS / 2
        return holds


def give_up_exhausted(ledger: Ledger) -> None:
    """Fail the work whose attempts are used up, so that one bad film can't hold its study for ever."""
    for stage in (DECODE, INFER, SHADOW, REPORT, ASSESS):
        with ledger.read() as session:
            leases = exhausted(session, stage)
        for lease in leases:
            try:
                with ledger.write() as session:
                    row, study = held(session, lease)
                    _give_up(session, stage, row, study)
            except LeaseLost:
                continue


def _give_up(session: Session, stage: Stage, row: Any, study: Study) -> None:
    if stage is SHADOW:
        row.state = AnalysisState.FAILED  # nobody waits for it
        return
    if stage is ASSESS:
        row.state = AssessmentState.FAILED
        record_event(session, study, "not_assessed", f"no SR of a reader's assessment ({_last_error(row)})")
        return
    if stage is REPORT:
        row.state, study.state = RevisionState.FAILED, StudyState.FAILED
        study.reason = f"the report could not be built in {MAX_ATTEMPTS} attempts ({_last_error(row)})"
        record_event(session, study, "failed", study.reason)
        return
    instance = row
    if stage is INFER:
        row.state = AnalysisState.FAILED
        instance = session.get_one(Instance, row.instance_id)
        if instance.state != InstanceState.DECODED:
            return  # a newer copy of the image stands for it
    instance.state = InstanceState.FAILED
    tally.add(tally.FILMS, InstanceState.FAILED, stage.name, session=session)
    words = {DECODE.name: "decoding", INFER.name: "inference"}[stage.name]
    instance.reason = f"{words} failed {MAX_ATTEMPTS} times ({_last_error(row)})"
    record_event(session, study, "instance_failed", instance.reason)
    settle_copies(session, study, instance.sop_instance_uid)
    settle(session, study)


def _last_error(row: Any) -> str:
    return row.last_error or "the process died each time"
