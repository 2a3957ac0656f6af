"""Role 3: the one that looks at the ledger and acts.

Every tick it concludes the studies that are due, gives up work that keeps killing its process, and keeps the
queues supplied. Several schedulers may run; the one that holds the ledger's scheduler lease acts.
"""

import threading
import time
from datetime import timedelta

import structlog
from sqlalchemy import or_, update
from sqlalchemy.exc import SQLAlchemyError

from service.core.completion import conclude_due_studies
from service.core.enqueue import Enqueuer
from service.core.heartbeat import BEAT_SECONDS, beat
from service.core.leases import DECODE, INFER, MAX_ATTEMPTS, REPORT, exhausted, owner
from service.core.ledger import Ledger, now, record_event
from service.core.receive import sweep_incoming
from service.core.spool import Spool
from service.core.states import AnalysisState, InstanceState, RevisionState, StudyState
from service.core.tables import Instance, SchedulerLease, Study

TICK_SECONDS = 0.2
_LEASE_SECONDS = 5.0
_GIVING_UP_SECONDS = 1.0
_HOUSEKEEPING_SECONDS = 60.0
# A transfer that has not grown for an hour has no listener any more.
_STALE_TRANSFER_SECONDS = 3600.0
_log = structlog.get_logger()


class Scheduler:
    """Runs until `stop` is called."""

    def __init__(self, ledger: Ledger, spool: Spool, broker_url: str) -> None:
        self._ledger = ledger
        self._spool = spool
        self._enqueuer = Enqueuer(ledger, broker_url)
        self._stopped = threading.Event()
        self._redis_reachable = True
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

    def stop(self) -> None:
        """Let `run` return after its tick."""
        self._stopped.set()

    def tick(self) -> None:
        """Look at the ledger once and do what is due."""
        moment = time.monotonic()
        if moment >= self._next_beat:
            beat(self._ledger, "scheduler", "" if self._redis_reachable else "Redis cannot be reached")
            self._next_beat = moment + BEAT_SECONDS
        if not self._holds_lease():
            return
        conclude_due_studies(self._ledger)
        self._redis_reachable = self._enqueuer.enqueue_ready()
        if moment >= self._next_housekeeping:
            self._next_housekeeping = moment + _HOUSEKEEPING_SECONDS
            sweep_incoming(self._spool, _STALE_TRANSFER_SECONDS)
        if moment >= self._next_giving_up:
            self._next_giving_up = moment + _GIVING_UP_SECONDS
            give_up_exhausted(self._ledger)

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
    with ledger.write() as session:
        for instance in exhausted(session, DECODE):
            _give_up_instance(instance, "decoding")
            record_event(session, instance.study_id, "instance_failed", instance.reason or "")
        for analysis in exhausted(session, INFER):
            analysis.state = AnalysisState.FAILED
            instance = session.get_one(Instance, analysis.instance_id)
            _give_up_instance(instance, "inference")
            record_event(session, instance.study_id, "instance_failed", instance.reason or "")
        for revision in exhausted(session, REPORT):
            revision.state = RevisionState.FAILED
            study = session.get_one(Study, revision.study_id)
            study.state = StudyState.FAILED
            study.reason = f"the report could not be built in {MAX_ATTEMPTS} attempts: {revision.last_error}"
            record_event(session, study, "failed", study.reason)


def _give_up_instance(instance: Instance, stage: str) -> None:
    instance.state = InstanceState.FAILED
    instance.reason = (
        f"{stage} failed {MAX_ATTEMPTS} times: {instance.last_error or 'the process died each time'}"
    )
