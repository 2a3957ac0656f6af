"""Queue `deliver`, last of all: the next steps of a back-fill, day by day and then study by study.

The work is one row a back-fill, leased for a few seconds: so one process works on it at a time, and a killed
one costs the step it was in. Each study counts its tries before it is asked for. Nothing is fetched while
what was sent here waits for its report, or while enough of what was fetched does.
"""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.core.audit import Transfer
from service.core.backfill import (
    IN_FLIGHT,
    MOST_TRIES,
    Found,
    Query,
    add_found,
    following,
    in_flight,
)
from service.core.claims import claim, live_waits
from service.core.destination import Destination
from service.core.errors import HilumError
from service.core.failpoints import failpoint
from service.core.hours import Hours
from service.core.incoming import IncomingFile, IncomingPart10, full
from service.core.leases import BACKFILL, Lease, ready, renewed
from service.core.ledger import now
from service.core.receive import Arrival, Intake
from service.core.states import BackfillState, FetchState, StudyState
from service.core.tables import Backfill, BackfillStudy, Study
from service.core.tombstones import tombstone_of
from worker.archive import Archive, ArchiveError, Given
from worker.archive_dimse import DimseArchive
from worker.archive_web import WebArchive
from worker.context import Context

# So long a process works on one back-fill before it looks whether there is something to be delivered.
_TURN_SECONDS = 3.0
_BUSY_SECONDS = 0.5
_AWAY_SECONDS = 60.0
_DAYS_A_TURN = 31
_log = structlog.get_logger()


@dataclass(frozen=True)
class _Wait:
    """When the next step may be taken, and why not now, where a person should know."""

    seconds: float
    why: str | None = None


def run(context: Context) -> None:
    """Take the next steps of the back-fill that has waited longest."""
    with context.ledger.read() as session:
        if session.scalar(select(Backfill.id).where(ready(BACKFILL)).limit(1)) is None:
            return
    for lease in claim(context.ledger, BACKFILL, 1):
        with renewed(context.ledger, [lease]), structlog.contextvars.bound_contextvars(backfill=lease.row_id):
            try:
                wait = _Turn(context, lease).take()
            except ArchiveError as fault:
                _log.warning("backfill.archive", reason=str(fault))
                wait = _Wait(_AWAY_SECONDS, str(fault))
            except Exception as fault:
                _log.exception("backfill.failed")
                wait = _Wait(
                    _AWAY_SECONDS, f"a step failed ({type(fault).__name__}): see the log of the worker"
                )
            _give_back(context, lease, wait)


class _Turn:
    """A few seconds of one back-fill."""

    def __init__(self, context: Context, lease: Lease) -> None:
        self._context = context
        self._lease = lease
        with context.ledger.read() as session:
            self._run = session.get_one(Backfill, lease.row_id)
        self._query = Query.of(self._run.query)

    def take(self) -> _Wait:
        """Take steps until the turn is over, or something has to be waited for.

        Raises
        ------
        ArchiveError
            When the archive can't be asked.
        """
        source = self._context.settings.destination(self._run.source)
        if source is None:
            return _Wait(_AWAY_SECONDS, f"no destination {self._run.source} is configured any more")
        if wait := self._hours(source) or self._room():
            return wait
        end = time.monotonic() + _TURN_SECONDS
        with _connected(self._context, source, self._run) as archive:
            if self._run.cursor is not None:
                self._search(archive)
            while time.monotonic() < end:
                if wait := self._room():
                    return wait
                study = self._next()
                if study is None:
                    return self._finish()
                began = time.monotonic()
                self._fetch(archive, source, study)
                failpoint("backfill.fetched")
                if self._run.rate is not None:
                    return _Wait(max(0.0, 60 / self._run.rate - (time.monotonic() - began)))
        return _Wait(0.0)

    def _hours(self, source: Destination) -> _Wait | None:
        """Return how long to wait for the hours of the back-fill, else those of its source."""
        hours = Hours.parse(self._run.hours) if self._run.hours else source.hours
        moment, zone = now(), self._context.settings.zone
        if hours is None or hours.hold(moment, zone):
            return None
        # A person may change the source's hours meanwhile.
        wait = min((hours.begin(moment, zone) - moment).total_seconds(), _AWAY_SECONDS)
        return _Wait(wait, f"waits for its hours, {hours}")

    def _room(self) -> _Wait | None:
        """Return how long to wait for those who come first, and for room."""
        settings, spool = self._context.settings, self._context.spool
        if full(spool, settings) or spool.free_bytes() < settings.free_bytes_to_keep:
            return _Wait(_AWAY_SECONDS, "waits for room in the data folder (HILUM_RETAIN_FREE_BYTES)")
        with self._context.ledger.read() as session:
            state = session.scalar(select(Backfill.state).where(Backfill.id == self._run.id))
            busy = session.scalar(select(live_waits())) or in_flight(session) >= IN_FLIGHT
        if state != BackfillState.RUNNING or busy:
            return _Wait(_BUSY_SECONDS)
        return None

    def _search(self, archive: Archive) -> None:
        """Ask for the next days, and note those of which the archive may not have told all."""
        for _ in range(_DAYS_A_TURN):
            date = self._run.cursor
            if date is None:
                break
            found: list[Found] = []
            cut = False
            for modality in self._query.modalities:
                studies, is_cut = archive.studies(date, modality)
                found += [
                    Found(study.study_instance_uid, study.study_date or date)
                    for study in studies
                    if self._query.wants_age(study.birth_date, study.study_date or date)
                ]
                cut = cut or is_cut
            after = following(date)
            with self._context.ledger.write() as session:
                new = add_found(session, self._run.id, found)
                self._run.cursor = after if after <= self._query.last else None
                run = session.get_one(Backfill, self._run.id, with_for_update=True)
                run.cursor = self._run.cursor
                if cut:
                    run.note = _cut_too(run.note, date)
            failpoint("backfill.searched")
            _log.info("backfill.searched", date=date, studies=new)

    def _next(self) -> BackfillStudy | None:
        """Return the next study to be fetched, its try counted; what was tried too often is given up."""
        with self._context.ledger.write() as session:
            while True:
                study = session.scalars(
                    select(BackfillStudy)
                    .where(
                        BackfillStudy.backfill_id == self._run.id,
                        # Nobody else holds the lease: what is under way was left by a process that died.
                        BackfillStudy.state.in_((FetchState.FOUND, FetchState.FETCHING, FetchState.MOVING)),
                        BackfillStudy.ready_at <= now(),
                    )
                    .order_by(BackfillStudy.study_date, BackfillStudy.id)
                    .limit(1)
                ).first()
                if study is None:
                    return None
                if study.attempts >= MOST_TRIES:
                    reason = study.reason or "the process that fetched it died each time"
                    _set(session, study, FetchState.FAILED, reason=reason)
                    continue
                here = session.scalars(
                    select(Study).where(Study.study_instance_uid == study.study_instance_uid)
                ).one_or_none()
                if here is not None and here.backfill_id != self._run.id:
                    _set(session, study, FetchState.KNOWN, reason="it was here already")
                    continue
                study.attempts += 1
                study.state, study.at = FetchState.FETCHING, now()
                return study

    def _fetch(self, archive: Archive, source: Destination, study: BackfillStudy) -> None:
        """Let one study come, and write down what became of it.

        Raises
        ------
        ArchiveError
            When the archive can't be asked any more; that is none of the study's tries.
        """
        try:
            given = self._retrieve(archive, source, study.study_instance_uid)
        except ArchiveError as fault:
            tried = fault.of_study
            with self._context.ledger.write() as session:
                study = session.get_one(BackfillStudy, study.id)
                study.attempts -= not tried
                later = now() + timedelta(seconds=_AWAY_SECONDS if tried else 0)
                _set(session, study, FetchState.FOUND, reason=str(fault), ready_at=later)
            if not tried:
                raise
            return
        with self._context.ledger.write() as session:
            study = session.get_one(BackfillStudy, study.id)
            if given is None:
                _set(session, study, FetchState.SKIPPED, reason="it has no series that was asked for")
                return
            here = session.scalars(
                select(Study).where(Study.study_instance_uid == study.study_instance_uid).with_for_update()
            ).one_or_none()
            if here is None:
                why = given.reason or "the archive told of it and gave nothing of it"
                if tombstone_of(session, study.study_instance_uid) is not None:
                    why = "it was erased here; `hilum purge --lift --study` with its UID lets it in again"
                _set(session, study, FetchState.MISSING, reason=why)
                return
            at_work = here.state in (StudyState.RECEIVING, StudyState.ANALYSING)
            if here.backfill_id == self._run.id and here.due_at is not None and at_work:
                here.due_at = now()  # nothing more of it will come
            state = FetchState.FETCHED if here.backfill_id == self._run.id else FetchState.KNOWN
            _set(session, study, state, reason=given.reason or None, instances=given.instances)

    def _retrieve(self, archive: Archive, source: Destination, study_instance_uid: str) -> Given | None:
        """Let the wanted series of a study come; return None when it has none."""
        wanted = [
            series.series_instance_uid
            for series in archive.series(study_instance_uid)
            if self._query.wants_series(series.modality, series.body_part)
        ]
        if not wanted:
            return None
        if archive.by_move:
            with self._context.ledger.write() as session:
                session.execute(
                    update(BackfillStudy)
                    .where(
                        BackfillStudy.backfill_id == self._run.id,
                        BackfillStudy.study_instance_uid == study_instance_uid,
                    )
                    .values(state=FetchState.MOVING, at=now())
                )
        transfer = self._context.audit.receiving(source.ae_title or source.name, source.host)
        door = _Door(self._context, source, self._run.id, transfer)
        came, missed, reason = 0, 0, ""
        try:
            for uid in wanted:
                given = archive.retrieve(study_instance_uid, uid, door)
                came, missed, reason = came + given.instances, missed + given.missed, given.reason or reason
        finally:
            transfer.write()
        return Given(came, missed, reason)

    def _finish(self) -> _Wait:
        """Return when to look again: some studies may wait for another try; else it is done."""
        with self._context.ledger.write() as session:
            later = session.scalars(
                select(BackfillStudy.ready_at)
                .where(BackfillStudy.backfill_id == self._run.id, BackfillStudy.state == FetchState.FOUND)
                .order_by(BackfillStudy.ready_at)
                .limit(1)
            ).first()
            run = session.get_one(Backfill, self._run.id, with_for_update=True)
            if later is not None or run.cursor is not None:
                return _Wait(_seconds_until(later))
            if run.state == BackfillState.RUNNING:
                run.state, run.finished_at = BackfillState.DONE, now()
        _log.info("backfill.done", name=run.name)
        return _Wait(0.0)


class _Door:
    """Where objects of a back-fill come in that we fetch ourselves (`worker.archive.Door`)."""

    def __init__(self, context: Context, source: Destination, backfill_id: int, transfer: Transfer) -> None:
        self._context = context
        self._intake = Intake(context.ledger, context.spool, context.settings)
        self._sender = source.ae_title or source.name[:16]
        self._backfill_id = backfill_id
        self._transfer = transfer

    def new_file(self, *, part10: bool) -> IncomingFile:
        """Return a file in ``incoming/``."""
        kind = IncomingPart10 if part10 else IncomingFile
        settings, spool = self._context.settings, self._context.spool
        return kind(spool.incoming, settings.max_object_bytes, full(spool, settings))

    def take(self, file: IncomingFile, sop_class_uid: str | None, sop_instance_uid: str | None) -> None:
        """Take an object into custody; see `worker.archive.Door`."""
        try:
            self._intake.receive(
                Arrival(
                    file.path,
                    self._sender,
                    sop_class_uid,
                    sop_instance_uid,
                    head=file.head,
                    digest=file.digest,
                    backfill_id=self._backfill_id,
                ),
                self._transfer,
            )
        except HilumError:
            raise
        except Exception as fault:
            _log.exception("backfill.not_received")
            raise HilumError(f"it could not be received ({type(fault).__name__})") from None


def _connected(context: Context, source: Destination, run: Backfill) -> Archive:
    if source.is_dicomweb:
        return WebArchive(source, context.settings.max_object_bytes)
    return DimseArchive(source, context.settings.ae_title, run.way)


def _set(session: Session, study: BackfillStudy, state: FetchState, **values: Any) -> None:
    study.state, study.at = state, now()
    for name, value in values.items():
        setattr(study, name, value)
    session.flush()


def _give_back(context: Context, lease: Lease, wait: _Wait) -> None:
    """Let the next step be taken when it is time, in whatever state the back-fill is by now."""
    with context.ledger.write() as session:
        session.execute(
            update(Backfill)
            .where(Backfill.id == lease.row_id, Backfill.lease_token == lease.token)
            .values(
                lease_owner=None,
                lease_until=None,
                attempts=0,
                last_error=wait.why,
                ready_at=now() + timedelta(seconds=wait.seconds),
            )
        )


def _cut_too(note: str | None, date: str) -> str:
    """Return what a person should know of days of which an archive may not have told all."""
    begin = "the archive may have more studies than it told of on "
    return f"{note}, {date}" if note else begin + date


def _seconds_until(moment: datetime | None) -> float:
    return 0.0 if moment is None else min(max(0.0, (moment - now()).total_seconds()), _AWAY_SECONDS)
