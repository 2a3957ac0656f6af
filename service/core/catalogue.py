"""What studies are searched by, for those that came before the ledger had columns for it.

A migration knows the ledger's URL and no data folder, and may not take an hour: it leaves the columns empty,
and the scheduler reads one header of each such study afterwards, some hundred a second, and five a second
while films are worked on. What is received since has them from its first transaction on
(`service.core.record`).
"""

import threading
import time

import structlog
from sqlalchemy import exists, select, update

from service.core.errors import Refused
from service.core.header import STUDY_ATTRIBUTES, read_header
from service.core.leases import TO_REPORT, at_work, count_ready
from service.core.ledger import Ledger
from service.core.spool import Spool
from service.core.tables import Instance, Subject

_BATCH = 50
# For so long films that are worked on hold the next ones back: somebody waits for those.
_PAUSE_SECONDS, _LOOK_SECONDS = 10.0, 0.5
_log = structlog.get_logger()


def is_complete(ledger: Ledger) -> bool:
    """Return whether all studies with files can be found by what is asked for."""
    with ledger.read() as session:
        missing = select(Subject.id).where(
            Subject.study_date.is_(None),
            exists().where(Instance.subject_id == Subject.id, Instance.spool_path.is_not(None)),
        )
        return session.scalars(missing.limit(1)).first() is None


def complete(ledger: Ledger, spool: Spool, stopped: threading.Event) -> int:
    """Read what is missing from the files, until there is nothing or `stopped` is set; return how many.

    Raises
    ------
    SQLAlchemyError
        When the ledger cannot be read or written now.
    """
    done = 0
    while not stopped.is_set():
        with ledger.read() as session:
            newest = (
                select(Instance.spool_path)
                .where(Instance.subject_id == Subject.id, Instance.spool_path.is_not(None))
                .order_by(Instance.id.desc())
                .limit(1)
                .scalar_subquery()
            )
            rows = session.execute(
                select(Subject.id, newest).where(Subject.study_date.is_(None)).limit(_BATCH)
            ).all()
        if not rows:
            break
        found = {subject_id: _attributes(spool, path) for subject_id, path in rows}
        with ledger.write() as session:
            for subject_id, values in found.items():
                # What came meanwhile has said it itself.
                still = (Subject.id == subject_id, Subject.study_date.is_(None))
                session.execute(update(Subject).where(*still).values(**values))
        done += len(rows)
        _let_films_pass(ledger, stopped)
    if done:
        _log.info("catalogue.completed", studies=done)
    return done


def _let_films_pass(ledger: Ledger, stopped: threading.Event) -> None:
    end = time.monotonic() + _PAUSE_SECONDS
    while time.monotonic() < end and _films_are_worked_on(ledger) and not stopped.wait(_LOOK_SECONDS):
        pass


def _films_are_worked_on(ledger: Ledger) -> bool:
    with ledger.read() as session:
        return any(at_work(session, stage) or count_ready(session, stage) for stage in TO_REPORT)


def _attributes(spool: Spool, path: str | None) -> dict[str, str]:
    """Return what a file says of its study; nothing, in empty words, where there is none to be read."""
    nothing = dict.fromkeys(STUDY_ATTRIBUTES, "")
    if path is None:
        return nothing
    try:
        subject = read_header(spool.absolute(path)).subject
    except (Refused, OSError) as fault:
        _log.warning("catalogue.not_read", file=path, error=type(fault).__name__)
        return nothing
    return {name: getattr(subject, name) for name in STUDY_ATTRIBUTES}
