"""What happens, told as it happens: one look at the ledger's events serves everybody who listens.

Server-sent events (HTML Standard, 9.2). While somebody listens the ledger is asked for new events a few times
a second, once for all; each study that something happened to is read once. Who comes back with the id of the
last event they got is told what they missed, or, where that is too much, to look again at all of it (event
``reset``).
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
from fastapi import HTTPException
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service.api import schemas, status
from service.core.ledger import Ledger
from service.core.tables import Event

LOOK_SECONDS = 0.25
STREAM_SECONDS = 300.0
"""After so long a stream ends and its browser asks anew, so that who was signed out hears no more."""
STREAMS, STREAMS_PER_CLIENT = 100, 20
_STILL_HERE_SECONDS = 15.0
# Transactions of this age have ended: an event with a lower id than others may be committed after them.
_SETTLED_SECONDS = 10.0
_REMEMBERED = 1000
_AT_A_TIME = 500
_RESET = "event: reset\ndata: {}\n\n"
_log = structlog.get_logger()


@dataclass(frozen=True)
class _Happening:
    """One event, as it is sent to who wants rows and to who does not."""

    id: int
    plain: str
    with_row: str


class _Listener:
    """One stream: what it has still to be sent. None ends it."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.queue: asyncio.Queue[_Happening | None] = asyncio.Queue(_REMEMBERED)
        self.is_lagging = False


class Feed:
    """The events of one ledger, for the streams of this process; `row` writes a study as a row of HTML."""

    def __init__(self, ledger: Ledger, row: Callable[[schemas.StudySummary], str]) -> None:
        self._ledger = ledger
        self._row = row
        self._listeners: set[_Listener] = set()
        self._looking: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()
        # What was told since somebody listens without a break.
        self._recent: deque[_Happening] = deque(maxlen=_REMEMBERED)
        self._closed = False
        # Every event up to `_floor` was seen, and those of `_seen` (with when), which may have gaps.
        self._floor: int | None = None
        self._seen: dict[int, float] = {}

    def check_room(self, client: str) -> None:
        """Answer 503 when too many streams are open, of all or of this client."""
        theirs = sum(listener.client == client for listener in self._listeners)
        if len(self._listeners) >= STREAMS or theirs >= STREAMS_PER_CLIENT:
            raise HTTPException(503, "too many event streams are open", {"Retry-After": "30"})

    async def stream(self, client: str, last_event_id: int | None, rows: bool) -> AsyncIterator[str]:
        """Yield what happens from now on, and before it what happened since `last_event_id`."""
        listener = _Listener(client)
        self._listeners.add(listener)
        if self._looking is None:
            self._floor, self._seen = None, {}
            self._recent.clear()
            self._looked.clear()
            self._looking = asyncio.create_task(self._look_again_and_again())
        until = time.monotonic() + STREAM_SECONDS
        try:
            yield "retry: 2000\n\n"
            told: set[int] = set()
            if last_event_id is not None:
                missed = await self._missed(last_event_id)
                if missed is None:
                    yield _RESET
                for happening in missed or ():
                    told.add(happening.id)
                    yield happening.with_row if rows else happening.plain
            while not self._closed and not listener.is_lagging and time.monotonic() < until:
                try:
                    happening_or_end = await asyncio.wait_for(listener.queue.get(), _STILL_HERE_SECONDS)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                if happening_or_end is None:
                    yield _RESET
                elif happening_or_end.id not in told:
                    yield happening_or_end.with_row if rows else happening_or_end.plain
        finally:
            self._listeners.discard(listener)
            if not self._listeners and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    def close(self) -> None:
        """End every stream: the server stops."""
        self._closed = True
        self._looked.set()
        self._tell([None])

    async def _look_again_and_again(self) -> None:
        while True:
            try:
                found = await run_in_threadpool(self._look)
            except SQLAlchemyError as fault:
                _log.warning("feed.blind", error=type(fault).__name__)
                await asyncio.sleep(1.0)
                continue
            except Exception:
                _log.exception("feed.failed")
                await asyncio.sleep(1.0)
                continue
            if found is None:
                self._recent.clear()
                self._tell([None])
            else:
                self._recent.extend(found)
                self._tell(found)
            self._looked.set()
            await asyncio.sleep(LOOK_SECONDS)

    def _tell(self, happenings: Sequence[_Happening | None]) -> None:
        for listener in self._listeners:
            for happening in happenings:
                with suppress(asyncio.QueueFull):
                    listener.queue.put_nowait(happening)
                    continue
                # It comes back with the id of the last one it got.
                listener.is_lagging = True

    async def _missed(self, last_event_id: int) -> Sequence[_Happening] | None:
        """Return what came after an event, in the order in which it was told; None when nobody knows."""
        # Read before the first look, the ledger would not yet have what that look takes for known.
        await self._looked.wait()
        recent = list(self._recent)
        for place, happening in enumerate(recent):
            if happening.id == last_event_id:
                return recent[place + 1 :]
        return await run_in_threadpool(self._since, last_event_id)

    def _since(self, last_event_id: int) -> Sequence[_Happening] | None:
        with self._ledger.read() as session:
            if last_event_id > _newest(session):
                return None  # of a ledger that was restored since, or erased with its study
            ids = session.scalars(
                select(Event.id).where(Event.id > last_event_id).order_by(Event.id).limit(_AT_A_TIME + 1)
            ).all()
            return self._written(session, ids) if len(ids) <= _AT_A_TIME else None

    def _look(self) -> Sequence[_Happening] | None:
        """Return the events that are new since the last look; None when that cannot be told."""
        moment = time.monotonic()
        with self._ledger.read() as session:
            newest = _newest(session)
            if self._floor is None:
                self._floor = newest
                return []
            if newest < self._floor:  # erased with their study: their ids are given again
                self._floor, self._seen = newest, {}
                return None
            later = session.scalars(select(Event.id).where(Event.id > self._floor).order_by(Event.id))
            new = [event_id for event_id in later if event_id not in self._seen][:_AT_A_TIME]
            found = self._written(session, new)
        self._seen.update(dict.fromkeys(new, moment))
        settled = [event_id for event_id, seen in self._seen.items() if seen < moment - _SETTLED_SECONDS]
        self._floor = max(settled, default=self._floor)
        self._seen = {event_id: seen for event_id, seen in self._seen.items() if event_id > self._floor}
        return found

    def _written(self, session: Session, event_ids: Sequence[int]) -> list[_Happening]:
        if not event_ids:
            return []
        events = session.scalars(select(Event).where(Event.id.in_(event_ids)).order_by(Event.id)).all()
        studies = status.summaries(session, {event.study_id for event in events})
        rows = {study_id: self._row(study) for study_id, study in studies.items()}
        return [
            _Happening(
                event.id,
                _message(event, studies[event.study_id], None),
                _message(event, studies[event.study_id], rows[event.study_id]),
            )
            for event in events
            if event.study_id in studies
        ]


def _newest(session: Session) -> int:
    return session.scalar(select(func.max(Event.id))) or 0


def _message(event: Event, study: schemas.StudySummary, row: str | None) -> str:
    made = schemas.HappeningOut(at=event.at, kind=event.kind, detail=event.detail, study=study, row=row)
    return f"id: {event.id}\ndata: {made.model_dump_json(exclude=None if row else {'row'})}\n\n"
