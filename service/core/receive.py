"""From bytes that have arrived to custody: on disk under their final name, and in the ledger.

Both doors (C-STORE and STOW-RS) end here. `Intake.receive` returns only when the object is safe; every other
outcome is an exception that carries its status.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.core import tally
from service.core.audit import Transfer
from service.core.audit_message import Action
from service.core.eligibility import Eligibility, Verdict, assess
from service.core.errors import HilumError, Mismatch, OutOfResources
from service.core.failpoints import failpoint
from service.core.file_meta import sending_ae_title
from service.core.header import Head, Header, read_header
from service.core.incoming import full
from service.core.ledger import Ledger, now
from service.core.live import Live
from service.core.record import Entry, Origin, Outcome, Recorder
from service.core.rejection import read_note
from service.core.rules import Decision, decide
from service.core.settings import Settings
from service.core.spool import Spool, data_set_digest

_log = structlog.get_logger()


@dataclass(frozen=True)
class Arrival:
    """One object in ``incoming/`` and what its sender said of it, None where the door has no word for it.

    C-STORE names the SOP instance in its command, STOW-RS in the file meta information and maybe the study.
    `head` and `digest` are of who had the bytes in memory when they came; else both are read from the file.
    `backfill_id` is of an object that a back-fill fetched by itself; `move_originator` is the AE title that
    the sender says asked for it by C-MOVE (0000,1030), empty when it says none.
    """

    path: Path
    calling_ae_title: str
    sop_class_uid: str | None = None
    sop_instance_uid: str | None = None
    study_instance_uid: str | None = None
    head: Head | None = None
    digest: str | None = None
    backfill_id: int | None = None
    move_originator: str = ""


class Intake:
    """Takes custody of arrived objects."""

    def __init__(self, ledger: Ledger, spool: Spool, settings: Settings, live: Live | None = None) -> None:
        self._spool = spool
        self._settings = settings
        self._live = live or Live(settings)
        self._recorder = Recorder(ledger, spool, settings, self._live)

    def receive(self, arrival: Arrival, transfer: Transfer | None = None) -> Outcome:
        """Take the object into custody; the file in ``incoming/`` is gone afterwards, whatever happens.

        It should be kept open, and with that locked, until this returns: `service.core.repair`. `transfer` is
        told what became of it, for the audit trail.

        Raises
        ------
        Unreadable, InvalidUID, Mismatch
            The object cannot be taken as it is.
        OutOfResources
            Disk or ledger cannot keep it now, or the files of its study are being removed.
        """
        began, sender = now(), tally.peer(self._settings, arrival.calling_ae_title)
        try:
            with transfer.unread() if transfer is not None else nullcontext(), _in_our_words():
                tally.add(tally.RECEIVED_BYTES, sender, by=arrival.path.stat().st_size)
                header = read_header(arrival.path, arrival.head)
            try:
                with _in_our_words():
                    outcome = self._take(header, arrival)
            except HilumError as fault:
                if transfer is not None:
                    transfer.add_received(header, Action.CREATE, fault.code)
                raise
        finally:
            with suppress(OSError):  # where nothing can be removed it is swept later
                arrival.path.unlink(missing_ok=True)
        if transfer is not None:
            transfer.add_received(header, Action.READ if outcome is Outcome.DUPLICATE else Action.CREATE)
        if arrival.backfill_id is None:
            tally.since(tally.STAGE_SECONDS, began, "receive")
        return outcome

    def _take(self, header: Header, arrival: Arrival) -> Outcome:
        _compare(header, arrival)
        if no_room := full(self._spool, self._settings):
            raise no_room
        verdict, decision = self._decide(header, arrival.calling_ae_title)
        note = read_note(arrival.path, header)
        digest, size = arrival.digest or data_set_digest(arrival.path), arrival.path.stat().st_size
        failpoint("receive.arrived")
        kept = None
        if verdict.eligibility is not Eligibility.IGNORED:
            kept = self._spool.keep(arrival.path)
            failpoint("receive.kept")
        path = self._spool.absolute(kept) if kept else arrival.path
        origin = Origin(arrival.backfill_id, arrival.move_originator)
        entry = Entry(
            header, verdict, decision, arrival.calling_ae_title, digest, size, path, kept, note, origin
        )
        try:
            outcome = self._recorder.record(entry)
        except OutOfResources:
            self._spool.remove(kept)
            raise
        failpoint("receive.recorded")
        if outcome is not Outcome.STORED:
            self._spool.remove(kept)
        _log.info(
            "receive",
            study_instance_uid=header.study_instance_uid,
            sop_instance_uid=header.sop_instance_uid,
            outcome=outcome,
            reason=verdict.reason,
        )
        return outcome

    def adopt(self, relative: str) -> Outcome:
        """Write a kept file that the ledger does not know into it: its listener died before it could.

        Does no harm to a listener that still lives: whichever comes first writes the row, and both find it.

        Raises
        ------
        Unreadable, InvalidUID
            When the file is no object that could have been kept.
        OutOfResources
            When the files of its study are being removed.
        """
        path = self._spool.absolute(relative)
        header = read_header(path)
        digest, size = data_set_digest(path), path.stat().st_size
        calling_ae_title = sending_ae_title(path)
        verdict, decision = self._decide(header, calling_ae_title)
        outcome = self._recorder.record(
            Entry(
                header,
                verdict,
                decision,
                calling_ae_title,
                digest,
                size,
                path,
                relative,
                None,
                Origin(adopted=True),
            )
        )
        failpoint("adopt.recorded")
        if outcome is not Outcome.STORED:
            self._spool.remove(relative)
        _log.info("receive.adopted", study_instance_uid=header.study_instance_uid, outcome=outcome)
        return outcome

    def _decide(self, header: Header, calling_ae_title: str) -> tuple[Verdict, Decision]:
        """Return what becomes of the object: by its header, and by the rules of the site as they are now."""
        verdict = assess(header)
        if verdict.eligibility is Eligibility.IGNORED:
            return verdict, Decision()
        decision = decide(self._live.settings.rules, header, calling_ae_title)
        if verdict.eligibility is Eligibility.CANDIDATE and not decision.analyse:
            verdict = Verdict(Eligibility.NOT_ANALYSED, decision.reason)
        return verdict, decision


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Turn what disk and ledger raise into what a sender is to be told."""
    try:
        yield
    except OSError as fault:
        raise OutOfResources(f"the object cannot be written ({fault.strerror})") from fault
    except SQLAlchemyError as fault:
        # The kept file stays: the commit may have happened though its answer got lost.
        raise OutOfResources(f"the ledger cannot be written ({type(fault).__name__})") from fault


def sweep_incoming(spool: Spool, older_than_seconds: float) -> int:
    """Remove what aborted transfers and killed listeners left in ``incoming/``; return how many files."""
    removed = 0
    oldest = now().timestamp() - older_than_seconds
    for left in spool.incoming.iterdir():
        try:
            if left.stat().st_mtime < oldest:
                os.unlink(left)  # noqa: PTH108
                removed += 1
        except OSError as fault:
            _log.warning("receive.leftover_not_removed", error=type(fault).__name__)
    return removed


def _compare(header: Header, arrival: Arrival) -> None:
    if arrival.sop_class_uid not in (None, str(header.sop_class_uid)):
        raise Mismatch("the sender and the data set name different SOP classes")
    if arrival.sop_instance_uid not in (None, str(header.sop_instance_uid)):
        raise Mismatch("the sender and the data set name different SOP instances")
    if arrival.study_instance_uid not in (None, str(header.study_instance_uid)):
        raise Mismatch("the sender and the data set name different studies")
