"""Tells people: what happened to studies, destinations that stay away, and silence.

The ledger is the outbox. What happened to a study is an `Occurrence`, written with its event; here it becomes
a `Notice` for each channel that wants it and goes, in one transaction; so none is lost or made twice. A
notice is sent until its receiver took it, at most `MOST_ATTEMPTS` times. A kill between the receiver's answer
and ours to the ledger sends it once more, under the same id. Runs beside the scheduler's ticks.
"""

import ssl
import threading
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

import structlog
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from service.core import tally, tls
from service.core.circuits import away
from service.core.failpoints import failpoint
from service.core.leases import backoff_seconds
from service.core.ledger import Ledger, now
from service.core.notices import Channel
from service.core.settings import Settings
from service.core.states import NoticeKind, NoticeState
from service.core.tables import Installation, Notice, Occurrence, Study
from service.core.working_hours import worked
from service.scheduler import mail, webhook
from service.scheduler.message import Message, NotDelivered

# Half a day, with the pauses below.
MOST_ATTEMPTS = 20
_FIRST_PAUSE_SECONDS = 15.0
_LONGEST_PAUSE_SECONDS = 3600.0
# Longer than any try takes.
_TRY = timedelta(seconds=60)
_MAIL_PAUSE = timedelta(minutes=5)
_BATCH = 50
_KEPT = timedelta(days=30)
_log = structlog.get_logger()


class Notices:
    """Makes notices and sends them."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._ledger = ledger
        self._settings = settings

    def round(self, stopped: threading.Event) -> None:
        """Do once all that is due; between two messages it can be stopped."""
        self._make()
        self._look()
        for channel in self._settings.notices:
            while not stopped.is_set() and self._send(channel):
                pass
        self._clear()
        tally.flush(self._ledger)

    def _make(self) -> None:
        """Turn what happened into notices for whoever wants to hear of it."""
        with self._ledger.read() as session:
            if session.scalar(select(func.min(Occurrence.id))) is None:
                return
        with self._ledger.write() as session:
            found = session.scalars(
                select(Occurrence).order_by(Occurrence.id).limit(1000).with_for_update(skip_locked=True)
            ).all()
            for channel in self._settings.notices:
                for kind, study_id, at, detail in _together(found):
                    if kind in channel.events:
                        # That a study is positive is told once, however often its report is built anew.
                        key = f"positive:{study_id}" if kind == NoticeKind.POSITIVE else None
                        _add(session, channel, kind, at, detail, key, study_id)
            session.execute(delete(Occurrence).where(Occurrence.id.in_([item.id for item in found])))

    def _look(self) -> None:
        """Make notices of what lasts: destinations that are away, and silence."""
        moment = now()
        for channel in self._settings.notices:
            with self._ledger.read() as session:
                due = [*self._absences(session, channel, moment), *self._silence(session, channel, moment)]
                due = [item for item in due if not _is_known(session, channel, item[2])]
            if due:
                with self._ledger.write() as session:
                    for kind, detail, key in due:
                        _add(session, channel, kind, moment, detail, key)

    def _absences(
        self, session: Session, channel: Channel, moment: datetime
    ) -> Iterator[tuple[NoticeKind, str, str]]:
        if NoticeKind.DESTINATION_DOWN in channel.events:
            for circuit in away(session):
                if moment - circuit.since >= channel.destination_down_after:
                    since = circuit.since.astimezone(self._settings.zone)
                    detail = (
                        f"{circuit.destination}, since {since:%Y-%m-%d %H:%M:%S %Z}: {circuit.last_error}"
                    )
                    key = f"down:{circuit.destination}:{circuit.since.timestamp():.0f}"
                    yield NoticeKind.DESTINATION_DOWN, detail, key

    def _silence(
        self, session: Session, channel: Channel, moment: datetime
    ) -> Iterator[tuple[NoticeKind, str, str]]:
        if NoticeKind.SILENCE not in channel.events:
            return
        newest = session.scalar(select(func.max(Study.received_at)).where(Study.backfill_id.is_(None)))
        begun = newest or session.scalar(select(Installation.created_at))
        if begun is None:
            return
        zone = self._settings.zone
        if worked(self._settings.hours, begun, moment, zone) >= channel.silence_after:
            hours = channel.silence_after.total_seconds() / 3600
            last = (
                f"the last one came {begun.astimezone(zone):%Y-%m-%d %H:%M %Z}"
                if newest
                else "none ever came"
            )
            detail = f"no study for {hours:g} h of working time ({self._settings.working_hours}): {last}"
            yield NoticeKind.SILENCE, detail, f"silence:{begun.timestamp():.0f}"

    def _send(self, channel: Channel) -> bool:
        """Send the oldest notice of a channel, all that wait by mail; return whether there may be more."""
        taken = self._take(channel)
        if not taken:
            return False
        try:
            if channel.is_mail:
                mail.send(channel, [message for _, message in taken], self._settings.zone)
            else:
                webhook.post(channel, taken[0][1])
        except Exception as fault:
            why = explain(fault)
            if why is None:
                _log.exception("notice.failed", channel=channel.name)
            self._postpone(channel, [row_id for row_id, _ in taken], why or type(fault).__name__)
            return False
        failpoint("notices.sent")
        with self._ledger.write() as session:
            session.execute(
                update(Notice)
                .where(Notice.id.in_([row_id for row_id, _ in taken]))
                .values(state=NoticeState.SENT, ready_at=now(), last_error=None)
            )
        tally.add(tally.NOTICES, channel.name, "sent", by=len(taken))
        _log.info("notice.sent", channel=channel.name, notices=len(taken))
        return not channel.is_mail

    def _take(self, channel: Channel) -> list[tuple[int, Message]]:
        """Return what is to be sent now, nobody else's for a minute; the try is counted before it is made."""
        moment = now()
        mine = Notice.channel == channel.name
        with self._ledger.read() as session:
            due = select(Notice.id).where(
                Notice.state == NoticeState.WAITING, Notice.ready_at <= moment, mine
            )
            if session.scalar(due.limit(1)) is None:
                return []
            if channel.is_mail:
                # Many studies at once shall be one mail.
                sent = select(func.max(Notice.ready_at)).where(Notice.state == NoticeState.SENT, mine)
                last = session.scalar(sent)
                if last is not None and moment - last < _MAIL_PAUSE:
                    return []
        with self._ledger.write() as session:
            rows = session.scalars(
                select(Notice)
                .where(Notice.state == NoticeState.WAITING, Notice.ready_at <= moment, mine)
                .order_by(Notice.id)
                .limit(_BATCH if channel.is_mail else 1)
                .with_for_update(skip_locked=True, of=Notice)
            ).all()
            for row in rows:
                row.attempts, row.ready_at = row.attempts + 1, moment + _TRY
            return [(row.id, _message(row)) for row in rows]

    def _postpone(self, channel: Channel, row_ids: Sequence[int], why: str) -> None:
        """Try again later, with all that waits for this channel; give up what was tried often enough."""
        _log.warning("notice.not_sent", channel=channel.name, reason=why)
        tally.add(tally.NOTICES, channel.name, "failed")
        with self._ledger.write() as session:
            rows = session.scalars(select(Notice).where(Notice.id.in_(row_ids)).with_for_update()).all()
            attempts = max((row.attempts for row in rows), default=1)
            pause = _FIRST_PAUSE_SECONDS / 2 * backoff_seconds(attempts, _LONGEST_PAUSE_SECONDS)
            later = now() + timedelta(seconds=min(pause, _LONGEST_PAUSE_SECONDS))
            for row in rows:
                row.last_error, row.ready_at = why, later
                if row.attempts >= MOST_ATTEMPTS:
                    row.state, row.ready_at = NoticeState.GIVEN_UP, now()
                    tally.add(tally.NOTICES, channel.name, "given_up", session=session)
                    _log.error("notice.given_up", channel=channel.name, kind=row.kind, reason=why)
            session.execute(
                update(Notice)
                .where(
                    Notice.channel == channel.name,
                    Notice.state == NoticeState.WAITING,
                    Notice.ready_at < later,
                )
                .values(ready_at=later)
            )

    def _clear(self) -> None:
        """Give up what is for channels that are gone, and forget what was told long ago."""
        names = [channel.name for channel in self._settings.notices]
        lost = (Notice.state == NoticeState.WAITING) & Notice.channel.not_in(names)
        old = (Notice.state != NoticeState.WAITING) & (Notice.ready_at < now() - _KEPT)
        with self._ledger.read() as session:
            if session.scalar(select(Notice.id).where(lost | old).limit(1)) is None:
                return
        with self._ledger.write() as session:
            gone = "no channel of this name is configured any more"
            session.execute(
                update(Notice).where(lost).values(state=NoticeState.GIVEN_UP, ready_at=now(), last_error=gone)
            )
            session.execute(delete(Notice).where(old))


def send_test(channel: Channel, settings: Settings) -> None:
    """Send a test notice at once, past the ledger.

    Raises
    ------
    OSError, ValueError, NotDelivered
        When it was not taken.
    """
    message = Message(str(uuid.uuid4()), NoticeKind.TEST, now(), "sent by `hilum notices test`: all is well")
    if channel.is_mail:
        mail.send(channel, [message], settings.zone)
    else:
        webhook.post(channel, message)


def _together(found: Sequence[Occurrence]) -> Iterator[tuple[NoticeKind, int, datetime, str]]:
    """Yield what happened, the same to one study as one: a report and its heat map are parked together."""
    groups: dict[tuple[str, int], list[Occurrence]] = {}
    for item in found:
        groups.setdefault((item.kind, item.study_id), []).append(item)
    for (kind, study_id), items in groups.items():
        details = dict.fromkeys(item.detail for item in items)
        yield NoticeKind(kind), study_id, items[0].at, "; ".join(details)


def _is_known(session: Session, channel: Channel, key: str) -> bool:
    known = select(Notice.id).where(Notice.channel == channel.name, Notice.key == key)
    return session.scalar(known) is not None


def _add(
    session: Session,
    channel: Channel,
    kind: NoticeKind,
    at: datetime,
    detail: str,
    key: str | None,
    study_id: int | None = None,
) -> None:
    if key is not None and _is_known(session, channel, key):
        return
    session.add(
        Notice(
            message_id=str(uuid.uuid4()),
            channel=channel.name,
            key=key,
            kind=kind,
            study_id=study_id,
            at=at,
            detail=detail[:2000],
            state=NoticeState.WAITING,
            ready_at=now(),
        )
    )


def _message(row: Notice) -> Message:
    study = row.study
    return Message(
        row.message_id,
        NoticeKind(row.kind),
        row.at,
        row.detail,
        study.study_instance_uid if study else None,
        study.finding if study else None,
        study.probability if study else None,
    )


def explain(fault: Exception) -> str | None:
    """Return why a notice was not taken, None when that is not what went wrong."""
    if isinstance(fault, ssl.SSLError):
        return tls.reason(fault)
    if isinstance(fault, NotDelivered | ValueError):
        return str(fault)
    if isinstance(fault, OSError):
        return fault.strerror or str(fault) or type(fault).__name__
    return None
